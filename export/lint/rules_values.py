"""Errors in the numbers of a Q/DQ pair: zero-points and scales."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from export.lint import sources
from export.lint.findings import Hit, Rule, Subject, names
from export.lint.graph import LintGraph
from export.names import QUANTIZE
from export.reading import FLOATS, attribute, type_name

# FP8, INT4 and FP4 are TensorRT's other quantized types; their pairs are not this linter's business.
QUANTIZED_TYPES = frozenset({TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1})
SCALES_IN_HALF = 19  # first opset whose QuantizeLinear takes FP16 and BF16 scales


def zero_point(node: NodeProto) -> str:
    """Name of the zero-point tensor; "" when the node has none."""
    return node.input[2] if len(node.input) > 2 else ""


def coded_type(graph: LintGraph, node: NodeProto) -> int | None:
    """Type of the codes a Q makes or a DQ on a constant reads; None where nothing states it."""
    zero = zero_point(node)
    if zero and zero in graph.types:
        return graph.types[zero]
    if node.op_type == QUANTIZE:
        return attribute(node, "output_dtype", 0) or None
    return graph.types.get(node.input[0]) if graph.producer(node.input[0]) is None else None


def _nonzero(subject: Subject) -> Iterator[Hit]:
    """Fires: a zero-point with any value other than 0.

    Leaves alone: zeros of any type, an absent zero-point.
    """
    for node in subject.graph.pairs:
        zero = zero_point(node)
        value = subject.graph.value(zero) if zero else None
        if value is not None and np.any(np.asarray(value, np.float32) != 0):
            yield Hit(names(node), "asymmetric quantization: the parser refuses zero-points other than 0", zero)


def _code_type(subject: Subject) -> Iterator[Hit]:
    """Fires: codes of another type than INT8: UINT8 activations, INT32 biases, INT16, UINT4.

    Leaves alone: INT8, the FP8, INT4 and FP4 pairs of other schemes, a Q without zero-point (QDQ-N305).
    """
    for node in subject.graph.pairs:
        kind = coded_type(subject.graph, node)
        if kind is None or kind == TensorProto.UNDEFINED or kind in QUANTIZED_TYPES:
            continue
        what = "a bias stored as INT32" if kind == TensorProto.INT32 else f"{type_name(kind)} codes"
        yield Hit(names(node), f"{what}: TensorRT quantizes to INT8 only", zero_point(node) or node.input[0])


def _zero_point_constant(subject: Subject) -> Iterator[Hit]:
    """Fires: a zero-point computed from a graph input, or with another number of values than the scale.

    Leaves alone: an initializer, a Constant, either behind a Cast; an absent zero-point.
    """
    graph = subject.graph
    for node in graph.pairs:
        zero = zero_point(node)
        if not zero:
            continue
        if not graph.constant(zero):
            yield Hit(names(node), "its zero-point is computed at run time; it must be a build-time constant", zero)
            continue
        sizes = graph.size(zero), graph.size(node.input[1])
        if None not in sizes and sizes[0] != sizes[1]:
            yield Hit(names(node), f"{sizes[0]} zero-points for {sizes[1]} scales; the numbers must be equal", zero)


def _positive(subject: Subject) -> Iterator[Hit]:
    """Fires: a scale that is zero, negative, infinite or NaN.

    Leaves alone: positive finite scales, scales whose value is not in the file.
    """
    for node in subject.graph.pairs:
        value = subject.graph.value(node.input[1])
        if value is None or not value.size:
            continue
        scale = np.asarray(value, np.float64)
        bad = int(np.count_nonzero(~(np.isfinite(scale) & (scale > 0))))
        if bad:
            yield Hit(names(node), f"{bad} of {scale.size} scales are not positive and finite", node.input[1])


def _static(subject: Subject) -> Iterator[Hit]:
    """Fires: a scale that depends on a graph input (dynamic quantization).

    Leaves alone: initializers, Constants and anything computed from them alone.
    """
    for node in subject.graph.pairs:
        if not subject.graph.constant(node.input[1]):
            reason = "its scale is computed at run time; TensorRT folds scales when it builds"
            yield Hit(names(node), reason, node.input[1])


def _scale_type(subject: Subject) -> Iterator[Hit]:
    """Fires: a scale that is no float, is FP16 or BF16 before opset 19, or is so on data of another type.

    Leaves alone: FP32 scales, and half scales on data of their own type from opset 19 on.
    """
    graph = subject.graph
    for node in graph.pairs:
        scale = graph.types.get(node.input[1], TensorProto.UNDEFINED)
        if scale in (TensorProto.FLOAT, TensorProto.UNDEFINED):
            continue
        data = graph.types.get(node.input[0], TensorProto.UNDEFINED)
        if scale not in FLOATS:
            reason = f"its scale is {type_name(scale)}; it must be FP32, FP16 or BF16"
        elif graph.opset < SCALES_IN_HALF:
            reason = f"its scale is {type_name(scale)}, which Q/DQ take from opset 19 on; this file has {graph.opset}"
        elif node.op_type == QUANTIZE and data in FLOATS and data != scale:
            reason = f"its scale is {type_name(scale)}, its data {type_name(data)}; strongly typed networks refuse that"
        else:
            continue
        yield Hit(names(node), reason, node.input[1])


RULES: tuple[Rule, ...] = (
    Rule(
        "QDQ-E101",
        "nonzero zero-point",
        "quantize symmetrically, zero-point 0, scale amax / 127 (onnxruntime: ActivationSymmetric, WeightSymmetric)",
        sources.PARSER,
        _nonzero,
    ),
    Rule(
        "QDQ-E102",
        "codes are not INT8",
        "use INT8 for activations and weights (onnxruntime: QuantType.QInt8) and keep biases in float",
        sources.CODES,
        _code_type,
    ),
    Rule(
        "QDQ-E103",
        "zero-point is not a constant of the scale's size",
        "store an INT8 initializer of zeros with the shape of the scale",
        sources.HEADER,
        _zero_point_constant,
    ),
    Rule(
        "QDQ-E104",
        "scale is not positive and finite",
        "calibrate this point again; an all-zero tensor needs a small positive scale",
        sources.PARSER,
        _positive,
    ),
    Rule(
        "QDQ-E105",
        "scale is not a constant",
        "calibrate on data and store the scale; TensorRT has no dynamic INT8 quantization",
        sources.HEADER,
        _static,
    ),
    Rule(
        "QDQ-E106",
        "scale type does not match",
        "give Q and DQ scales of the type of their data, with opset 19 or later for FP16 and BF16",
        sources.HEADER,
        _scale_type,
    ),
)
