"""Errors of `qdq check`: small edits of the canonical graph on which each one fires, and near misses."""

from __future__ import annotations

import numpy as np

from qdq.studies.linter.graphs import edits_errors as x
from qdq.studies.linter.graphs import edits_types as t
from qdq.studies.linter.graphs.edits import (
    GELU,
    NORM,
    PAIR,
    QUERY,
    UP,
    WEIGHT,
    Edit,
    X,
    edit,
    gemm_weight,
    moved_codes,
    transposed_weight,
    weight_scale,
    without_zero_point,
)
from qdq.studies.linter.graphs.edits_errors import READERS
from qdq.studies.linter.graphs.edits_types import TANH

from .graphs import Cases

SCALE = f"{X}.scale"


def opset(version: int) -> Edit:
    return lambda graph: graph.opset(version)


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
    "QDQ-E101": ([(x.put(ZERO, 3, np.int8), PAIR)], [x.put(ZERO, 0, np.uint8)]),
    "QDQ-E102": (
        [(t.unsigned_weight, (WEIGHT,)), (x.put(ZERO, 0, np.int16), PAIR), (t.quantized_bias, ("bias.dq",))],
        [x.put(ZERO, 0, np.uint8), x.put(ZERO, 0, np.int32), x.put(ZERO, 3, np.int8), without_zero_point(WEIGHT)],
    ),
    "QDQ-E103": (
        [(x.zero_point_at_run_time, PAIR[:1]), (x.put(ZERO, [0, 0], np.int8), PAIR)],
        [x.cast_zero_point, x.put(ZERO, [0], np.int8), without_zero_point(WEIGHT)],
    ),
    "QDQ-E104": (
        [(x.put(SCALE, bad, np.float32), PAIR) for bad in (0, -1, np.nan)],
        [x.put(SCALE, np.inf, np.float32)],
    ),
    "QDQ-E105": ([(x.scale_at_run_time, PAIR[:1])], [x.computed_constant_scale]),
    "QDQ-E106": (
        [(x.put(SCALE, 0.1, np.float16), PAIR[:1]), (edit(x.put(SCALE, 0.1, np.float16), opset(17)), PAIR[:1])],
        [x.half, edit(x.half, opset(17)), x.put(SCALE, 0.1, np.float64)],
    ),
    "QDQ-E107": (
        [(x.put(ZERO, 0, np.uint8), PAIR), (x.put(ZERO, 0, np.int32), PAIR)],
        [x.put(ZERO, 128, np.uint8), x.put(ZERO, 0, np.int16), t.unsigned_weight],
    ),
    "QDQ-E108": ([(x.put(SCALE, 0.1, np.float64), PAIR)], [x.put(SCALE, 0.1, np.float16)]),
    "QDQ-E111": ([(x.per_channel_activation, PAIR[:1])], [x.put(SCALE, [[0.1]], np.float32)]),
    "QDQ-E112": ([(x.per_channel_dequantize, PAIR[1:])], [x.per_channel_activation]),
    "QDQ-E113": (
        [(weight_scale((2, 32), 0), (WEIGHT,))],
        [
            lambda graph: graph.attribute(WEIGHT, "block_size", 16),
            t.blocked_int4_weight,
            weight_scale((1, 1)),
            weight_scale((1,)),
        ],
    ),
    "QDQ-E114": (
        [
            (weight_scale((31,)), (WEIGHT,)),
            (weight_scale((32,), 2), (WEIGHT,)),
            (weight_scale((0,)), (WEIGHT,)),
            (weight_scale((1, 1)), (WEIGHT,)),
        ],
        [weight_scale((2, 32), 0), weight_scale((32,), -1), weight_scale((1,))],
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
    "QDQ-E117": ([(t.int4_weight(0.1), (f"{QUERY}.MatMul",))], [t.int4_weight(*[0.1] * 32)]),
    "QDQ-E121": (
        [
            (x.foreign("DynamicQuantizeLinear", ""), (TANH,)),
            (x.foreign("MatMulInteger", ""), (TANH,)),
            (x.foreign("QAttention", "com.microsoft"), (TANH,)),
            (t.fast_gelu, (GELU,)),
            (t.determinant, ("det",)),
        ],
        [t.microsoft("Gelu", GELU), t.microsoft("", NORM), t.microsoft_pairs, t.plugin],
    ),
    "QDQ-E122": ([(opset(26), ())], [opset(12), opset(25)]),
    "QDQ-E123": (
        [(t.read_codes, PAIR[:1])],
        [moved_codes, x.codes_into_cast, x.codes_as_output, t.unread_codes],
    ),
    "QDQ-E124": ([(x.doubled, PAIR[:1])], [x.half]),
    "QDQ-E125": (
        [(edit(x.half, x.put(SCALE, 0.1, np.float32)), READERS), (edit(x.half, x.wide_scales), MEETS_HALF)],
        [x.half, x.with_cast, edit(x.half, opset(17))],
    ),
    "QDQ-E126": (
        [(x.codes_into_cast, PAIR[:1]), (x.codes_as_output, ("tail.q",))],
        [moved_codes, t.unread_codes, t.read_codes],
    ),
    "QDQ-E127": ([(opset(12), ("bert.Unsqueeze",))], [t.own_ops_of_opset_12, opset(13)]),
    "QDQ-E128": ([(t.plugin, (TANH,))], [t.fast_gelu]),
    "QDQ-E131": ([(t.in_bfloat16, ("narrow",))], [x.half]),
    "QDQ-E132": (
        [(t.wide_points(f"{UP}.input_quantizer"), (f"{UP}.MatMul",))],
        [t.wide_points(f"{UP}.input_quantizer", f"{UP}.weight_quantizer"), x.half],
    ),
}
