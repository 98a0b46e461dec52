"""Layers of an engine as the inspector writes them at DETAILED verbosity, in the spelling of TensorRT 10 and of 11."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Tensor = tuple[str, str, tuple[int, ...]]  # name, data type, sizes
RESULT: Tensor = ("out", "Half", (-1, -1, 384))


def tensors(*listed: Tensor) -> list[dict[str, Any]]:
    return [
        {"Name": name, "Location": "Device", "Dimensions": list(sizes), "Format/Datatype": datatype}
        for name, datatype, sizes in listed
    ]


def layer(
    name: str,
    kind: str,
    nodes: list[str],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor] = (RESULT,),
    tactic: str = "",
) -> dict[str, Any]:
    described: dict[str, Any] = {
        "Name": name,
        "LayerType": kind,
        "Inputs": tensors(*inputs),
        "Outputs": tensors(*outputs),
    }
    described |= {"StreamId": 0, "Metadata": "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes)}
    return described | ({"TacticName": tactic} if tactic else {})


def in_11(layer_info: Mapping[str, Any]) -> dict[str, Any]:
    """The same as TensorRT 11 spells it: type and format apart, weights under "Constants", the engine's tensors as
    objects.
    """
    text: dict[str, Any] = json.loads(json.dumps(layer_info))
    for described in text["Layers"]:
        for one in described["Inputs"] + described["Outputs"]:
            one.update({"Datatype": one.pop("Format/Datatype"), "Format": "Row major linear"})
        described["Constants"] = [one for one in described["Inputs"] if one["Name"] in ("weight", "table")]
        described["Inputs"] = [one for one in described["Inputs"] if one not in described["Constants"]]
    text["I/O Tensors"] = [{"Name": name, "IOMode": "Input", "DataType": "Int32"} for name in text.pop("Bindings")]
    return text
