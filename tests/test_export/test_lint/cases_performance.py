"""Performance findings of `qdq check`: small edits of the canonical graph on which each one fires, and near misses."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from .graphs import (
    ADD,
    BMM1,
    BMM2,
    GELU,
    HEAD,
    KEY,
    NORM,
    PAIR,
    QUERY,
    SELF,
    SOFTMAX,
    UP,
    Cases,
    Edit,
    X,
    edit,
    erf_gelu,
    float_attention,
    float_linear,
    float_residual,
    gemm_weight,
    masked_by_where,
    moved_codes,
    tanh_gelu,
    transposed_weight,
    written_norm,
)


def quantized_input(graph: Any) -> None:
    graph.graph.input.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, [1, 1, 32]))
    add = graph.node("bert.embeddings.Add_1")
    add.input[1] = graph.pair("extra", add.name, "extra_pair")


def requantized(graph: Any) -> None:
    graph.requantize(f"{QUERY}.MatMul", 0, "again", 0.3)


def same_scale_again(graph: Any) -> None:
    graph.requantize(f"{QUERY}.MatMul", 0, "again", float(graph.value(f"{X}.scale")))


def late_cast(graph: Any) -> None:
    """FP16 graph whose DQ in front of one product makes FP32, cast back: what opset 17 exporters write."""
    graph.half()
    dequantize = graph.node(f"{UP}.input_quantizer.dequantize")
    wide = graph.set("wide", graph.value(dequantize.input[1]).astype(np.float32))
    product = graph.node(f"{UP}.MatMul")
    inputs = [dequantize.input[0], wide, dequantize.input[2]]
    made = graph.insert(product.name, "DequantizeLinear", inputs, "wide.dq")
    product.input[0] = graph.insert(product.name, "Cast", [made], "narrow", to=TensorProto.FLOAT16)


def useless_cast(graph: Any) -> None:
    product = graph.node(f"{UP}.MatMul")
    product.input[0] = graph.insert(product.name, "Cast", [product.input[0]], "noop", to=TensorProto.FLOAT)


def second_quantizer(scale: float | None) -> Edit:
    """Another pair on the layer input for the key linear."""

    def apply(graph: Any) -> None:
        value = float(graph.value(f"{X}.scale")) if scale is None else scale
        source = graph.node(f"{X}.quantize").input[0]
        graph.node(f"{KEY}.MatMul").input[0] = graph.pair(source, f"{KEY}.MatMul", "second", value)

    return apply


def second_reader(graph: Any) -> None:
    """Another DQ on the codes of the layer input."""
    first = graph.node(f"{X}.dequantize")
    graph.node(f"{KEY}.MatMul").input[0] = graph.insert(
        f"{KEY}.MatMul", "DequantizeLinear", list(first.input), "second.dq"
    )


def head_size(size: int) -> Edit:
    def apply(graph: Any) -> None:
        for name in ("Reshape", "Reshape_1", "Reshape_2"):
            graph.set(f"{SELF}{name}.shape", np.array([0, 0, 32 // size, size], np.int64))

    return apply


def scaled_scores(op: str) -> Edit:
    def apply(graph: Any) -> None:
        graph.set("root", np.array(4.0, np.float32))
        add = graph.node(f"{SELF}Add")
        add.input[0] = graph.insert(add.name, op, [add.input[0], "root"], "late")

    return apply


def scaled_query(graph: Any) -> None:
    graph.set("root", np.array(0.25, np.float32))
    quantize = graph.node(f"{SELF}matmul_q_input_quantizer.quantize")
    quantize.input[0] = graph.insert(quantize.name, "Mul", [quantize.input[0], "root"], "early")


CASES: Cases = {
    "QDQ-P201": (
        [
            (lambda graph: graph.float_operand(f"{QUERY}.MatMul", 0), (f"{QUERY}.MatMul",)),
            (lambda graph: graph.float_operand(f"{QUERY}.MatMul", 1), (f"{QUERY}.MatMul",)),
            (lambda graph: graph.requantize(HEAD, 0, "head"), (HEAD,)),
        ],
        [float_linear, lambda graph: graph.float_operand(BMM1, 0), transposed_weight(0)],
    ),
    "QDQ-P202": (
        [
            (lambda graph: graph.float_operand(ADD, 0), (ADD,)),
            (lambda graph: graph.float_operand(ADD, 1), (ADD,)),
        ],
        [float_residual, lambda graph: graph.requantize("bert.embeddings.Add", 0, "word")],
    ),
    "QDQ-P203": (
        [
            (lambda graph: graph.float_operand(BMM1, 1), (SOFTMAX,)),
            (edit(masked_by_where, lambda graph: graph.float_operand(BMM2, 0)), (SOFTMAX,)),
        ],
        [float_attention, moved_codes, masked_by_where],
    ),
    "QDQ-P204": (
        [
            (float_linear, (f"{SELF}matmul_q_input_quantizer.quantize",)),
            (quantized_input, ("extra_pair.q",)),
            (requantized, ("again.q",)),
        ],
        [same_scale_again, float_attention, lambda graph: graph.requantize("bert.embeddings.Add", 0, "word")],
    ),
    "QDQ-P205": (
        [
            (lambda graph: graph.requantize(NORM, 0, "sum"), ("sum.q",)),
            (written_norm(crossed=True), ("inside.q",)),
        ],
        [written_norm()],
    ),
    "QDQ-P206": (
        [
            (lambda graph: graph.requantize(f"{UP}.Add", 0, "product"), ("product.q",)),
            (lambda graph: graph.requantize(GELU, 0, "biased"), ("biased.q",)),
            (erf_gelu(crossed=True), ("inside.q",)),
        ],
        [erf_gelu(), tanh_gelu],
    ),
    "QDQ-P207": ([(late_cast, ("narrow",))], [useless_cast, lambda graph: graph.half()]),
    "QDQ-P208": ([(second_quantizer(None), PAIR[:1])], [second_quantizer(0.3), second_reader]),
    "QDQ-P209": ([(second_quantizer(0.3), PAIR[:1])], [second_quantizer(None), second_reader]),
    "QDQ-P210": ([(head_size(8), (SOFTMAX,))], [head_size(32), float_attention]),
    "QDQ-P211": ([(gemm_weight(0), (HEAD,))], [lambda graph: graph.requantize(HEAD, 0, "head")]),
    "QDQ-P212": (
        [(scaled_scores("Mul"), ("late",)), (scaled_scores("Div"), ("late",))],
        [scaled_query, masked_by_where],
    ),
}
