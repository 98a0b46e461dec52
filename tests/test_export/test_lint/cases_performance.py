"""Accuracy and performance findings of `qdq check`: edits of the canonical graph on which each fires, near misses."""

from __future__ import annotations

import numpy as np

from qdq.studies.linter.graphs.edits import (
    ADD,
    BMM1,
    BMM2,
    GELU,
    HEAD,
    NORM,
    PAIR,
    QUERY,
    SELF,
    SOFTMAX,
    UP,
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
    weight_scale,
    written_norm,
)
from qdq.studies.linter.graphs.edits_blocks import (
    head_size,
    late_cast,
    quantized_input,
    requantized,
    same_scale_again,
    scaled_query,
    scaled_scores,
    second_quantizer,
    second_reader,
    useless_cast,
)
from qdq.studies.linter.graphs.edits_errors import half, put
from qdq.studies.linter.graphs.edits_types import query_scale, taken_apart

from .graphs import Cases

ACCURACY: Cases = {
    "QDQ-A401": ([(half, (f"{QUERY}.MatMul",))], [edit(), edit(half, lambda graph: graph.strip())]),
    "QDQ-A402": ([(put(f"{X}.scale", np.inf, np.float32), PAIR[:1])], [put(f"{X}.scale", 0, np.float32)]),
}
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
            (lambda graph: graph.float_operand(ADD, 1), (ADD,)),
        ],
        [
            lambda graph: graph.float_operand(ADD, 0),
            float_residual,
            lambda graph: graph.requantize("bert.embeddings.Add", 0, "word"),
        ],
    ),
    "QDQ-P203": (
        [
            (lambda graph: graph.float_operand(BMM1, 1), (SOFTMAX,)),
            (edit(masked_by_where, lambda graph: graph.float_operand(BMM2, 0)), (SOFTMAX,)),
            (lambda graph: graph.requantize(f"{SELF}Add", 0, "scores"), (SOFTMAX,)),
        ],
        [float_attention, moved_codes, masked_by_where, lambda graph: graph.requantize(SOFTMAX, 0, "scores")],
    ),
    "QDQ-P204": (
        [
            (float_linear, (f"{SELF}matmul_q_input_quantizer.quantize",)),
            (requantized, ("again.q",)),
        ],
        [
            quantized_input,
            same_scale_again,
            float_attention,
            lambda graph: graph.requantize("bert.embeddings.Add", 0, "word"),
        ],
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
    "QDQ-P210": ([(head_size(8), (SOFTMAX,)), (head_size(32), (SOFTMAX,))], [head_size(16), float_attention]),
    "QDQ-P211": ([(gemm_weight(0), (HEAD,))], [lambda graph: graph.requantize(HEAD, 0, "head")]),
    "QDQ-P212": (
        [(scaled_scores("Mul"), ("late",)), (scaled_scores("Div"), ("late",))],
        [scaled_query, masked_by_where],
    ),
    "QDQ-P213": ([(taken_apart, (f"{UP}.MatMul",))], [edit(taken_apart, weight_scale((), None, UP))]),
    "QDQ-P214": ([(query_scale(0.01), (f"{QUERY}.MatMul",))], [second_quantizer(0.3)]),
}
