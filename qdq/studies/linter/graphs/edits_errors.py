"""Edits that a parser may refuse: zero-points, scales, code types, operators, opsets."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from qdq.studies.linter.graphs.editor import Graph
from qdq.studies.linter.graphs.edits import HEAD, L0, SELF, Edit, X, edit

READERS = (*(f"{SELF}{part}.MatMul" for part in ("query", "key", "value")), f"{L0}attention.output.Add")


def put(name: str, value: Any, dtype: Any) -> Edit:
    def apply(graph: Graph) -> None:
        graph.set(name, np.array(value, dtype))

    return apply


def zero_point_at_run_time(graph: Graph) -> None:
    graph.node(f"{X}.quantize").input[2] = graph.run_time(f"{X}.quantize", TensorProto.INT8, "zero")


def cast_zero_point(graph: Graph) -> None:
    graph.set("zero32", np.array(0, np.int32))
    zero = graph.insert(f"{X}.quantize", "Cast", ["zero32"], "zero8", to=TensorProto.INT8)
    graph.node(f"{X}.quantize").input[2] = zero


def scale_at_run_time(graph: Graph) -> None:
    graph.node(f"{X}.quantize").input[1] = graph.run_time(f"{X}.quantize", TensorProto.FLOAT, "scale")


def computed_constant_scale(graph: Graph) -> None:
    graph.set("half", np.array(0.5, np.float32))
    graph.node(f"{X}.quantize").input[1] = graph.insert(f"{X}.quantize", "Mul", ["half", "half"], "quarter")


def per_channel_activation(graph: Graph) -> None:
    for node in ("quantize", "dequantize"):
        graph.attribute(f"{X}.{node}", "axis", 2)
    graph.set(f"{X}.scale", np.full(32, 0.1, np.float32))
    graph.set(f"{X}.zero_point", np.zeros(32, np.int8))


def per_channel_dequantize(graph: Graph) -> None:
    node = graph.node(f"{X}.dequantize")
    node.input[1] = graph.set("scales", np.full(32, 0.1, np.float32))
    node.input[2] = graph.set("zeros", np.zeros(32, np.int8))
    graph.attribute(f"{X}.dequantize", "axis", 2)


def foreign(op: str, domain: str) -> Edit:
    def apply(graph: Graph) -> None:
        node = graph.node("bert.pooler.activation.Tanh")
        node.op_type, node.domain = op, domain
        node.input.extend(list(node.input) if op == "MatMulInteger" else [])

    return apply


def codes_into_cast(graph: Graph) -> None:
    graph.insert(HEAD, "Cast", [f"{X}.quantize"], "stranger", to=TensorProto.FLOAT)


def codes_as_output(graph: Graph) -> None:
    pair = graph.pair("bert.pooler.activation.Tanh", HEAD, "tail")
    assert pair == "tail.dq"
    graph.graph.node.remove(graph.node("tail.dq"))
    graph.graph.output.append(helper.make_tensor_value_info("tail.q", TensorProto.INT8, None))


def doubled(graph: Graph) -> None:
    quantize = graph.node(f"{X}.quantize")
    quantize.input[0] = graph.insert(quantize.name, "QuantizeLinear", list(quantize.input), "first.q")


def half(graph: Graph) -> None:
    graph.half()


def wide_scales(graph: Graph) -> None:
    """FP32 scales in an FP16 graph, as a converter leaves them that turns only the rest into FP16."""
    for tensor in list(graph.graph.initializer):
        if tensor.name.endswith(".scale"):
            graph.set(tensor.name, graph.value(tensor.name).astype(np.float32))


def with_cast(graph: Graph) -> None:
    """One FP32 scale, and a Cast to FP16 in front of every reader."""
    edit(half, put(f"{X}.scale", 0.1, np.float32))(graph)
    for name in READERS:
        node = graph.node(name)
        place = list(node.input).index(f"{X}.dequantize")
        node.input[place] = graph.insert(name, "Cast", [node.input[place]], f"{name}.cast", to=TensorProto.FLOAT16)
