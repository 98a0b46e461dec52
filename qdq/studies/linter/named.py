"""Graphs that rules of the linter name as their proof: an edit of the canonical graph, or a form and a GPU for it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from qdq.studies.linter.graphs import edits as e
from qdq.studies.linter.graphs import edits_blocks as b
from qdq.studies.linter.graphs import edits_errors as x
from qdq.studies.linter.graphs import edits_types as t
from qdq.studies.linter.graphs.editor import Graph
from qdq.studies.linter.graphs.edits import Edit

SCALE, ZERO = f"{e.X}.scale", f"{e.X}.zero_point"
OUTPUT = f"{e.L0}attention.output.dense"


def _operands(node: str, *places: int) -> Edit:
    return e.edit(*(partial(Graph.float_operand, node=node, operand=place) for place in places))


def _requantized(node: str, place: int, name: str) -> Edit:
    return partial(Graph.requantize, node=node, operand=place, name=name)


def _opset(version: int) -> Edit:
    return partial(Graph.opset, version=version)


NAMED_EDITS: Mapping[str, Edit] = {
    # Zero-points and scales.
    "zero-point 3": x.put(ZERO, 3, np.int8),
    "UINT8 zero-point 0": x.put(ZERO, 0, np.uint8),
    "UINT8 zero-point 128": x.put(ZERO, 128, np.uint8),
    "UINT8 probabilities": x.put(f"{e.SELF}matmul_a_input_quantizer.zero_point", 0, np.uint8),
    "INT32 zero-point 0": x.put(ZERO, 0, np.int32),
    "INT16 zero-point": e.edit(x.put(ZERO, 0, np.int16), _opset(21)),
    "UINT16 zero-point": e.edit(x.put(ZERO, 0, np.uint16), _opset(21)),
    "UINT8 weight": t.unsigned_weight,
    "INT32 bias": t.quantized_bias,
    "zero-point at run time": x.zero_point_at_run_time,
    "zero-point behind a Cast": x.cast_zero_point,
    "two zero-points": x.put(ZERO, [0, 0], np.int8),
    "no zero-point": t.without_zero_points,
    "scale 0": x.put(SCALE, 0, np.float32),
    "scale -1": x.put(SCALE, -1, np.float32),
    "scale NaN": x.put(SCALE, np.nan, np.float32),
    "scale infinite": x.put(SCALE, np.inf, np.float32),
    "scale at run time": x.scale_at_run_time,
    "scale of a constant product": x.computed_constant_scale,
    "scale of shape [1]": x.put(SCALE, [0.1], np.float32),
    "FP16 scale in FP32": x.put(SCALE, 0.1, np.float16),
    "FP16 scale of an FP32 input": e.edit(b.quantized_input, x.half),
    "FP64 scale": x.put(SCALE, 0.1, np.float64),
    "FP16, opset 17": e.edit(x.half, _opset(17)),
    "FP32 scales in FP16": e.edit(x.half, x.wide_scales),
    "one FP32 scale in FP16": e.edit(x.half, x.put(SCALE, 0.1, np.float32)),
    # What a scale spans.
    "Q per channel": x.per_channel_activation,
    "DQ per channel": x.per_channel_dequantize,
    "blocked INT8 weight": e.weight_scale((2, 32), 0),
    "blocked INT4 weight": e.edit(t.blocked_int4_weight, _opset(21)),
    "block_size beside a scale per channel": partial(Graph.attribute, node=e.WEIGHT, name="block_size", value=16),
    "31 scales for 32 channels": e.weight_scale((31,)),
    "axis outside": e.weight_scale((32,), 2),
    "empty scale": e.weight_scale((0,)),
    "one scale [1, 1]": e.weight_scale((1, 1)),
    "no axis": e.weight_scale((32,), None),
    "negative axis": e.weight_scale((32,), -1),
    "weight scaled along K": e.weight_scale((32,), 0, e.UP),
    "transposed weight": e.transposed_weight(0),
    "transposed weight scaled along K": e.transposed_weight(1),
    # Operators, opsets, codes.
    "DynamicQuantizeLinear": x.foreign("DynamicQuantizeLinear", ""),
    "MatMulInteger": x.foreign("MatMulInteger", ""),
    "QLinearMatMul": t.integer_product,
    "QAttention": x.foreign("QAttention", "com.microsoft"),
    "FastGelu": t.fast_gelu,
    "com.microsoft Gelu": t.microsoft("Gelu", e.GELU),
    "com.microsoft LayerNormalization": t.microsoft("", e.NORM),
    "com.microsoft Q and DQ": t.microsoft_pairs,
    "Det": t.determinant,
    "plugin": t.plugin,
    "opset 12": _opset(12),
    "opset 12, its own ops": t.own_ops_of_opset_12,
    "opset 25": _opset(25),
    "opset 30": _opset(30),
    "IR version 15": b.ir_version(15),
    "codes as output": x.codes_as_output,
    "codes into Cast": t.used_codes,
    "codes into MatMul": t.read_codes,
    "codes for nothing": t.unread_codes,
    "codes moved": e.moved_codes,
    "doubled Q": x.doubled,
    "quantized scalar": b.scalar,
    # Linears and their epilogue.
    "float weight": _operands(f"{e.QUERY}.MatMul", 1),
    "float input": _operands(f"{e.QUERY}.MatMul", 0),
    "Q behind a float linear": e.float_linear,
    "Q on a graph input": b.quantized_input,
    "requantized": b.requantized,
    "requantized with the same scale": b.same_scale_again,
    "Q before the bias": _requantized(f"{e.UP}.Add", 0, "product"),
    "Q before GELU": _requantized(e.GELU, 0, "biased"),
    "Q inside GELU": e.erf_gelu(crossed=True),
    "GELU of primitive ops": e.erf_gelu(),
    "GELU by tanh": e.tanh_gelu,
    "cast behind the input": t.wide_points(f"{e.UP}.input_quantizer"),
    "cast behind the weight": t.wide_points(f"{e.UP}.weight_quantizer"),
    "casts behind both": t.wide_points(f"{e.UP}.input_quantizer", f"{e.UP}.weight_quantizer"),
    "casts in attention": t.wide_points(*(f"{e.SELF}matmul_{operand}_input_quantizer" for operand in "qkv")),
    "quantized classifier": e.gemm_weight(0),
    "query per tensor": t.query_scale(0.01),
    "query with a scale of its own": e.edit(
        *(e.weight_scale((), None, linear) for linear in (e.QUERY, e.KEY, f"{e.SELF}value")), t.query_scale(0.02)
    ),
    # Blocks.
    "float skip": _operands(e.ADD, 1),
    "float branch": _operands(e.ADD, 0),
    "no pair on the add": e.float_residual,
    "Q before LayerNorm": _requantized(e.NORM, 0, "sum"),
    "Q inside LayerNorm": e.written_norm(crossed=True),
    "second Q": b.second_quantizer(None),
    "second scale": b.second_quantizer(0.3),
    "second reader": b.second_reader,
    "late scale": b.scaled_scores("Mul"),
    "masked by Where": e.masked_by_where,
    "no Q behind attention": _operands(f"{OUTPUT}.MatMul", 0),
    "quantized scores": _requantized(f"{e.SELF}Add", 0, "scores"),
    "quantized masked scores": _requantized(e.SOFTMAX, 0, "scores"),
    "nothing quantized": Graph.strip,
    # What other tools write.
    "like ModelOpt's torch path": e.edit(
        e.float_attention, e.float_residual, b.second_quantizer(None), _requantized(e.NORM, 0, "sum")
    ),
    "like ONNX Runtime's quantizer": e.edit(
        b.scaled_scores("Mul"),
        _requantized(f"{e.SELF}Add", 0, "scores"),
        _requantized(f"{e.UP}.Add", 0, "product"),
        _requantized(e.GELU, 0, "biased"),
        _requantized(e.NORM, 0, "sum"),
    ),
}

# name -> changes of the form, compute capability, sizes
NAMED_FORMS: Mapping[str, tuple[Mapping[str, Any], int, Mapping[str, int]]] = {
    "canonical": ({}, 80, {}),
    "FP16 body": ({"body": "fp16"}, 75, {}),
    "BF16 body": ({"body": "bf16"}, 80, {}),
    "BF16 body, heads of 64": ({"body": "bf16", "hidden": 128}, 80, {}),
    "BF16 on SM75": ({"body": "bf16"}, 75, {}),
    "FP32 on SM75": ({}, 75, {}),
    "FP8 on SM89": ({"body": "fp16", "codes": "fp8", "weights": "tensor"}, 89, {}),
    "FP8 on SM80": ({"body": "fp16", "codes": "fp8", "weights": "tensor"}, 80, {}),
    "INT4 weights on SM80": ({"body": "fp16", "codes": "int4", "opset": 21}, 80, {}),
    "INT4 on SM75": ({"body": "fp16", "codes": "int4", "opset": 21}, 75, {}),
    "INT4 weight with one scale": ({"body": "fp16", "codes": "int4", "opset": 21, "weights": "tensor"}, 80, {}),
    "Split": ({"body": "fp16", "qkv": "split"}, 75, {}),
    "Split, channel ratios": ({"body": "fp16", "qkv": "split", "weights": "ratio"}, 75, {}),
    "merged": ({"body": "fp16", "qkv": "merged"}, 75, {}),
    "merged, float attention": ({"body": "fp16", "qkv": "merged", "attention": ""}, 75, {}),
    "merged, channel ratios": ({"body": "fp16", "qkv": "merged", "weights": "ratio"}, 75, {}),
    "one scale per weight": ({"body": "fp16", "weights": "tensor"}, 75, {}),
    "float attention": ({"body": "fp16", "attention": ""}, 75, {}),
    "attention q": ({"body": "fp16", "attention": "q"}, 75, {}),
    "attention qk": ({"body": "fp16", "attention": "qk"}, 75, {}),
    "attention av": ({"body": "fp16", "attention": "av"}, 75, {}),
    "attention qkv": ({"body": "fp16", "attention": "qkv"}, 75, {}),
    "attention qv": ({"body": "fp16", "attention": "qv"}, 75, {}),
    "skip with its own Q": ({"body": "fp16", "skip": "own"}, 75, {}),
    "like ModelOpt's ONNX path": ({"body": "fp16", "skip": "own", "late_scale": True}, 75, {}),
    "heads of 8": ({"body": "fp16", "hidden": 16}, 75, {}),
    "heads of 24": ({"body": "fp16", "hidden": 48}, 75, {}),
    "heads of 48": ({"body": "fp16", "hidden": 96}, 75, {}),
    "heads of 64": ({"body": "fp16", "hidden": 128}, 75, {}),
    "heads of 128": ({"body": "fp16", "hidden": 256}, 75, {}),
    "one head of 32": ({"body": "fp16", "heads": 1}, 75, {}),
    "one head of 64": ({"body": "fp16", "hidden": 64, "heads": 1}, 75, {}),
    "sequence 512": ({"body": "fp16", "positions": 640}, 75, {"sequence": 512}),
    "sequence 520": ({"body": "fp16", "positions": 640}, 75, {"sequence": 520}),
    "heads of 64, sequence 512 on SM75": ({"body": "fp16", "hidden": 128, "positions": 640}, 75, {"sequence": 512}),
    "profile up to 384 on SM75": ({"body": "fp16", "hidden": 128, "positions": 640}, 75, {"longest": 384}),
    "profile up to 512 on SM75": ({"body": "fp16", "hidden": 128, "positions": 640}, 75, {"longest": 512}),
    "profile up to 512 on SM80": ({"body": "fp16", "hidden": 128, "positions": 640}, 80, {"longest": 512}),
    "profile up to 520 on SM80": ({"body": "fp16", "hidden": 128, "positions": 640}, 80, {"longest": 520}),
}
