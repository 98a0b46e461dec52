"""The nodes and initializers of a graph that is written node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper


class Nodes:
    """Nodes and initializers of a graph whose floats have the type `kind`; every node's output has the node's name."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def store(self, name: str, values: Any, kind: int) -> str:
        """Add an initializer of an ONNX element type; a second one of that name is the first one."""
        values = np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(kind))
        packed = kind == TensorProto.INT4  # two in a byte
        data = values.flatten() if packed else values.tobytes()
        tensor = helper.make_tensor(name, kind, values.shape, data, raw=not packed)
        self.initializers.setdefault(name, tensor)
        return name

    def floats(self, name: str, values: Any) -> str:
        return self.store(name, values, self.kind)

    def integers(self, name: str, values: Sequence[int] | int) -> str:
        return self.store(name, values, TensorProto.INT64)

    def op(self, kind: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name
