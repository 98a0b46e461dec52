"""Packed graphs in OpenVINO: which outputs have a row per token, and the same graph without the packing."""

from __future__ import annotations

from typing import Any

import numpy as np

from qdq.base.packing import CROP, OUTPUT, PACK, PLACES, SPREAD


def is_packed(model: Any) -> bool:
    """True for a graph that packs the tokens of a batch (`qdq.base.packing`)."""
    return any(node.get_friendly_name() == PLACES for node in model.get_ops())


def token_outputs(model: Any) -> frozenset[int]:
    """Places of the outputs [B, S, …] of a packed graph.

    OpenVINO gives what makes an output the output's name, so it is known by what it reads.
    """
    found = set()
    for place, result in enumerate(model.get_results()):
        zeros = result.input_value(0).get_node()
        reads = [source.get_node().get_friendly_name() for source in zeros.input_values()]
        if any(name.startswith(OUTPUT) for name in reads):
            found.add(place)
    return frozenset(found)


def take_out_packing(model: Any, shape: tuple[int, ...]) -> None:
    """Make a packed graph, in place, one that works on every position of inputs of `shape`.

    Values are those of the packed graph. Every gather becomes a change of shape, which costs nothing, so that full
    batches are as fast as without packing.
    """
    from openvino import opset13 as ops

    # Every position in its own place; an input keeps its name where it takes the place of what it was cut to.
    named = [(port, port.get_names()) for port in model.inputs]
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    places = np.arange(rows * columns, dtype=np.int64).reshape(shape)
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        if name.startswith(CROP) or name == f"{PLACES}.crop":
            instead = node.input_value(0)
        elif name == PLACES:
            instead = ops.constant(places).output(0)
        elif name.startswith(PACK):
            instead = _flat(ops, node, rows, columns)
        elif name.startswith((SPREAD, OUTPUT)):
            behind = _behind(node.output(0), 2)
            instead = ops.reshape(node.input_value(0), [rows, columns, *behind], special_zero=False).output(0)
        else:
            continue
        if instead.get_node().get_friendly_name() == instead.get_node().get_name():
            instead.get_node().set_friendly_name(name)
        node.output(0).replace(instead)
    for port, names in named:
        port.set_names(names)
    model.validate_nodes_and_infer_types()


def _flat(ops: Any, node: Any, rows: int, columns: int) -> Any:
    """Every position of what a node packs, as [1, B·S, …]."""
    data = node.input_value(0)
    if data.get_partial_shape()[1] == columns:  # [1, S, …]: the same for every text
        return ops.tile(data, [1, rows, *(1 for _ in _behind(data, 2))]).output(0)
    return data


def _behind(output: Any, axes: int) -> list[int]:
    return [size.get_length() for size in list(output.get_partial_shape())[axes:]]
