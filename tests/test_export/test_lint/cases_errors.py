"""Errors of `qdq check`: small edits of the canonical graph on which each one fires, and near misses."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from .graphs import (
    HEAD,
    L0,
    PAIR,
    SELF,
    UP,
    WEIGHT,
    Cases,
    Edit,
    X,
    edit,
    gemm_weight,
    moved_codes,
    transposed_weight,
    void,
    weight_scale,
    without_zero_point,
)


def put(name: str, value: Any, dtype: Any) -> Edit:
    return lambda graph: void(graph.set(name, np.array(value, dtype)))


def zero_point_at_run_time(graph: Any) -> None:
    graph.node(f"{X}.quantize").input[2] = graph.run_time(f"{X}.quantize", TensorProto.INT8, "zero")


def cast_zero_point(graph: Any) -> None:
    graph.set("zero32", np.array(0, np.int32))
    zero = graph.insert(f"{X}.quantize", "Cast", ["zero32"], "zero8", to=TensorProto.INT8)
    graph.node(f"{X}.quantize").input[2] = zero


def scale_at_run_time(graph: Any) -> None:
    graph.node(f"{X}.quantize").input[1] = graph.run_time(f"{X}.quantize", TensorProto.FLOAT, "scale")


def computed_constant_scale(graph: Any) -> None:
    graph.set("half", np.array(0.5, np.float32))
    graph.node(f"{X}.quantize").input[1] = graph.insert(f"{X}.quantize", "Mul", ["half", "half"], "quarter")


def per_channel_activation(graph: Any) -> None:
    for node in ("quantize", "dequantize"):
        graph.attribute(f"{X}.{node}", "axis", 2)
    graph.set(f"{X}.scale", np.full(32, 0.1, np.float32))
    graph.set(f"{X}.zero_point", np.zeros(32, np.int8))


def per_channel_dequantize(graph: Any) -> None:
    node = graph.node(f"{X}.dequantize")
    node.input[1] = graph.set("scales", np.full(32, 0.1, np.float32))
    node.input[2] = graph.set("zeros", np.zeros(32, np.int8))
    graph.attribute(f"{X}.dequantize", "axis", 2)


def foreign(op: str, domain: str) -> Edit:
    def apply(graph: Any) -> None:
        node = graph.node("bert.pooler.activation.Tanh")
        node.op_type, node.domain = op, domain
        node.input.extend(list(node.input) if op == "MatMulInteger" else [])

    return apply


def codes_into_cast(graph: Any) -> None:
    graph.insert(HEAD, "Cast", [f"{X}.quantize"], "stranger", to=TensorProto.FLOAT)


def codes_as_output(graph: Any) -> None:
    pair = graph.pair("bert.pooler.activation.Tanh", HEAD, "tail")
    assert pair == "tail.dq"
    graph.graph.node.remove(graph.node("tail.dq"))
    graph.graph.output.append(helper.make_tensor_value_info("tail.q", TensorProto.INT8, None))


def doubled(graph: Any) -> None:
    quantize = graph.node(f"{X}.quantize")
    quantize.input[0] = graph.insert(quantize.name, "QuantizeLinear", list(quantize.input), "first.q")


def half(graph: Any) -> None:
    graph.half()


def wide_scales(graph: Any) -> None:
    """FP32 scales in an FP16 graph, as a converter leaves them that turns only the rest into FP16."""
    for tensor in list(graph.graph.initializer):
        if tensor.name.endswith(".scale"):
            graph.set(tensor.name, graph.value(tensor.name).astype(np.float32))


def with_cast(graph: Any) -> None:
    """One FP32 scale, and a Cast to FP16 in front of every reader."""
    edit(half, put(f"{X}.scale", 0.1, np.float32))(graph)
    for name in READERS:
        node = graph.node(name)
        place = list(node.input).index(f"{X}.dequantize")
        node.input[place] = graph.insert(name, "Cast", [node.input[place]], f"{name}.cast", to=TensorProto.FLOAT16)


READERS = (*(f"{SELF}{part}.MatMul" for part in ("query", "key", "value")), f"{L0}attention.output.Add")
# Products of two FP32 operands are FP32; what meets FP16 are their biases, the mask, and LayerNorm's parameters.
MEETS_HALF = tuple(
    f"bert.encoder.layer.{layer}.{name}"
    for layer in (0, 1)
    for name in (
        *(f"attention.self.{part}Add" for part in ("query.", "key.", "value.", "")),
        *(f"{part}.dense.Add" for part in ("attention.output", "intermediate", "output")),
        *(f"{part}.LayerNorm.LayerNormalization" for part in ("attention.output", "output")),
    )
)
ZERO = f"{X}.zero_point"

CASES: Cases = {
    "QDQ-E101": ([(put(ZERO, 3, np.int8), PAIR)], [put(ZERO, 0, np.uint8)]),
    "QDQ-E102": (
        [(put(ZERO, 0, np.uint8), PAIR), (put(ZERO, 0, np.int32), PAIR)],
        [put(ZERO, 3, np.int8), without_zero_point(WEIGHT)],
    ),
    "QDQ-E103": (
        [(zero_point_at_run_time, PAIR[:1]), (put(ZERO, [0, 0], np.int8), PAIR)],
        [cast_zero_point, put(ZERO, [0], np.int8), without_zero_point(WEIGHT)],
    ),
    "QDQ-E104": ([(put(f"{X}.scale", bad, np.float32), PAIR) for bad in (0, -1, np.inf, np.nan)], []),
    "QDQ-E105": ([(scale_at_run_time, PAIR[:1])], [computed_constant_scale]),
    "QDQ-E106": (
        [
            (put(f"{X}.scale", 0.1, np.float16), PAIR[:1]),
            (put(f"{X}.scale", 0.1, np.float64), PAIR),
            (edit(put(f"{X}.scale", 0.1, np.float16), lambda graph: graph.opset(17)), PAIR),
        ],
        [lambda graph: graph.half()],
    ),
    "QDQ-E111": ([(per_channel_activation, PAIR[:1])], [put(f"{X}.scale", [[0.1]], np.float32)]),
    "QDQ-E112": ([(per_channel_dequantize, PAIR[1:])], [per_channel_activation]),
    "QDQ-E113": (
        [
            (weight_scale((2, 32), 0), (WEIGHT,)),
            (lambda graph: graph.attribute(WEIGHT, "block_size", 16), (WEIGHT,)),
        ],
        [weight_scale((1, 1)), weight_scale((1,))],
    ),
    "QDQ-E114": (
        [(weight_scale((31,)), (WEIGHT,)), (weight_scale((32,), 2), (WEIGHT,)), (weight_scale((0,)), (WEIGHT,))],
        [weight_scale((2, 32), 0), weight_scale((32,), -1)],
    ),
    "QDQ-E115": ([(weight_scale((32,), None), (WEIGHT,))], [weight_scale((), None)]),
    "QDQ-E116": (
        [
            (weight_scale((32,), 0, UP), (f"{UP}.weight_quantizer.dequantize",)),
            (transposed_weight(1), (f"{UP}.weight_quantizer.dequantize",)),
            (gemm_weight(1), ("w.dq",)),
        ],
        [transposed_weight(0), gemm_weight(0), gemm_weight(1, trans=0), weight_scale((), 0)],
    ),
    "QDQ-E121": (
        [
            (foreign("DynamicQuantizeLinear", ""), ("bert.pooler.activation.Tanh",)),
            (foreign("MatMulInteger", ""), ("bert.pooler.activation.Tanh",)),
            (foreign("QAttention", "com.microsoft"), ("bert.pooler.activation.Tanh",)),
        ],
        [foreign("CustomTanh", "my.plugins")],
    ),
    "QDQ-E122": (
        [(lambda graph: graph.opset(12), ()), (lambda graph: graph.opset(26), ())],
        [lambda graph: graph.opset(13), lambda graph: graph.opset(25)],
    ),
    "QDQ-E123": ([(codes_into_cast, PAIR[:1]), (codes_as_output, ("tail.q",))], [moved_codes]),
    "QDQ-E124": ([(doubled, PAIR[:1])], [lambda graph: graph.half()]),
    "QDQ-E125": (
        [(edit(half, put(f"{X}.scale", 0.1, np.float32)), READERS), (edit(half, wide_scales), MEETS_HALF)],
        [half, with_cast],
    ),
}
