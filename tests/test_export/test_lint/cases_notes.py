"""Notes of `qdq check`: small edits of the canonical graph on which each one fires, and near misses."""

from __future__ import annotations

from typing import Any

from .graphs import (
    ADD,
    BMM1,
    HEAD,
    PAIR,
    QUERY,
    SOFTMAX,
    WEIGHT,
    Cases,
    Edit,
    edit,
    float_attention,
    float_linear,
    float_residual,
    without_zero_point,
)


def scalar(graph: Any) -> None:
    mean = graph.insert(HEAD, "ReduceMean", ["bert.pooler.activation.Tanh"], "scalar", keepdims=0)
    head = graph.node(HEAD)
    bias = graph.insert(HEAD, "Add", ["classifier.bias", graph.pair(mean, HEAD, "point")], "shifted")
    head.input[2] = bias


def ir_version(version: int) -> Edit:
    return lambda graph: setattr(graph.model, "ir_version", version)


CASES: Cases = {
    "QDQ-N301": (
        [(float_attention, (SOFTMAX,))],
        [lambda graph: graph.float_operand(BMM1, 1), lambda graph: graph.strip()],
    ),
    "QDQ-N302": ([(float_residual, (ADD,))], [lambda graph: graph.float_operand(ADD, 0)]),
    "QDQ-N303": (
        [(float_linear, (f"{QUERY}.MatMul",))],
        [lambda graph: graph.float_operand(f"{QUERY}.MatMul", 1), lambda graph: graph.strip()],
    ),
    "QDQ-N304": (
        [(edit(), ("bert.embeddings.LayerNorm.LayerNormalization",))],
        [lambda graph: graph.half(), lambda graph: graph.strip()],
    ),
    "QDQ-N305": ([(without_zero_point(*PAIR), PAIR[:1])], [without_zero_point(WEIGHT)]),
    "QDQ-N306": ([(scalar, ("point.q",))], []),
    "QDQ-N307": ([(ir_version(14), ())], [ir_version(13)]),
    "QDQ-N308": ([(lambda graph: graph.opset(25), ())], [lambda graph: graph.opset(24)]),
    "QDQ-N309": ([(lambda graph: graph.strip(), ())], []),
}
