"""Errors in the numbers of a Q/DQ pair: zero-points and scales."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from export.lint import sources
from export.lint.findings import Hit, Rule, Subject, Verdict, names
from export.lint.graph import LintGraph
from export.names import QUANTIZE
from export.reading import FLOATS, attribute, type_name

# FP8, INT4 and FP4 are TensorRT's other quantized types; their pairs are not this linter's business.
QUANTIZED_TYPES = frozenset({TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1})
READ_AS_INT8 = frozenset({TensorProto.UINT8, TensorProto.INT32})  # zero-points that the parser reads and passes over


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
    """Fires: stored codes of another type than INT8 (UINT8 weights, INT32 biases), and INT16, UINT16 or UINT4 anywhere.

    Leaves alone: INT8, the FP8, INT4 and FP4 pairs of other schemes, a Q without zero-point (QDQ-N305), computed codes
    whose zero-point is of a type that the parser reads (QDQ-E107).
    """
    for node, kind in _foreign_codes(subject):
        if kind in READ_AS_INT8 and not subject.graph.constant(node.input[0]):
            continue
        what = "a bias stored as INT32" if kind == TensorProto.INT32 else f"{type_name(kind)} codes"
        yield Hit(names(node), f"{what}: TensorRT quantizes to INT8 only", zero_point(node) or node.input[0])


def _taken_as_int8(subject: Subject) -> Iterator[Hit]:
    """Fires: a pair on a computed tensor whose zero-point is a UINT8 or INT32 zero.

    Leaves alone: other zero-points than 0 (QDQ-E101), stored codes and other types (QDQ-E102).
    """
    for node, kind in _foreign_codes(subject):
        zero = zero_point(node)
        value = subject.graph.value(zero) if zero else None
        if kind not in READ_AS_INT8 or subject.graph.constant(node.input[0]) or value is None or np.any(value != 0):
            continue
        reason = f"{type_name(kind)} codes are built as INT8: what the file rounds to 128 and above becomes 127"
        yield Hit(names(node), reason, zero)


def _foreign_codes(subject: Subject) -> Iterator[tuple[NodeProto, int]]:
    """Pairs with codes of a type that is none of TensorRT's, and the type."""
    for node in subject.graph.pairs:
        kind = coded_type(subject.graph, node)
        if kind is not None and kind != TensorProto.UNDEFINED and kind not in QUANTIZED_TYPES:
            yield node, kind


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
    """Fires: a scale that is zero, negative or NaN.

    Leaves alone: positive scales, infinite ones (QDQ-A402), scales whose value is not in the file.
    """
    for node, scale in _scales(subject):
        bad = int(np.count_nonzero(~(scale > 0)))
        if bad:
            yield Hit(names(node), f"{bad} of {scale.size} scales are not positive", node.input[1])


def _infinite(subject: Subject) -> Iterator[Hit]:
    """Fires: a scale that is infinite.

    Leaves alone: finite scales, scales whose value is not in the file.
    """
    bad = [node for node, scale in _scales(subject) if np.any(np.isposinf(scale))]
    if bad:
        yield Hit(names(*bad), f"{len(bad)} Q or DQ have an infinite scale: every product behind it is NaN")


def _scales(subject: Subject) -> Iterator[tuple[NodeProto, NDArray[np.float64]]]:
    """Pairs whose scale has a value in the file, and the value."""
    for node in subject.graph.pairs:
        value = subject.graph.value(node.input[1])
        if value is not None and value.size:
            yield node, np.asarray(value, np.float64)


def _static(subject: Subject) -> Iterator[Hit]:
    """Fires: a scale that depends on a graph input (dynamic quantization).

    Leaves alone: initializers, Constants and anything computed from them alone.
    """
    for node in subject.graph.pairs:
        if not subject.graph.constant(node.input[1]):
            reason = "its scale is computed at run time; what a constant scale is folded into cannot take it"
            yield Hit(names(node), reason, node.input[1])


def _scale_type(subject: Subject) -> Iterator[Hit]:
    """Fires: a scale that is no float, or FP16 or BF16 on data of another type.

    Leaves alone: FP32 scales, half scales on data of their own type, FP64 scales (QDQ-E108).
    """
    graph = subject.graph
    for node in graph.pairs:
        scale = graph.types.get(node.input[1], TensorProto.UNDEFINED)
        if scale in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.UNDEFINED):
            continue
        data = graph.types.get(node.input[0], TensorProto.UNDEFINED)
        if scale not in FLOATS:
            reason = f"its scale is {type_name(scale)}; it must be FP32, FP16 or BF16"
        elif node.op_type == QUANTIZE and data in FLOATS and data != scale:
            reason = f"its scale is {type_name(scale)}, its data {type_name(data)}; strongly typed networks refuse that"
        else:
            continue
        yield Hit(names(node), reason, node.input[1])


def _double(subject: Subject) -> Iterator[Hit]:
    """Fires: an FP64 scale.

    Leaves alone: FP32, FP16 and BF16 scales.
    """
    graph = subject.graph
    for node in graph.pairs:
        if graph.types.get(node.input[1]) == TensorProto.DOUBLE:
            yield Hit(
                names(node), "its scale is FP64; newer parsers read it as FP32, older ones refuse it", node.input[1]
            )


RULES: tuple[Rule, ...] = (
    Rule(
        "QDQ-E101",
        "nonzero zero-point",
        "quantize symmetrically, zero-point 0, scale amax / 127 (onnxruntime: ActivationSymmetric, WeightSymmetric)",
        sources.PARSER,
        Verdict("confirmed", 'refused: "Non-zero zero point is not supported"', ("zero-point 3",)),
        _nonzero,
    ),
    Rule(
        "QDQ-E102",
        "codes are not INT8",
        "use INT8 for activations and weights (onnxruntime: QuantType.QInt8) and keep biases in float",
        sources.CODES,
        Verdict(
            "confirmed",
            "refused: UINT8 weights, INT32 biases, INT16 and UINT16 zero-points",
            ("UINT8 weight", "INT32 bias", "INT16 zero-point", "UINT16 zero-point"),
        ),
        _code_type,
    ),
    Rule(
        "QDQ-E103",
        "zero-point is not a constant of the scale's size",
        "store an INT8 initializer of zeros with the shape of the scale",
        sources.HEADER,
        Verdict(
            "confirmed",
            'refused: "zero_point which is not an initializer", "must have the same volume"',
            ("zero-point at run time", "two zero-points"),
        ),
        _zero_point_constant,
    ),
    Rule(
        "QDQ-E104",
        "scale is not positive",
        "calibrate this point again; an all-zero tensor needs a small positive scale",
        sources.PARSER,
        Verdict(
            "confirmed",
            'refused: "Scale coefficients must all be positive"',
            ("scale 0", "scale -1", "scale NaN"),
        ),
        _positive,
    ),
    Rule(
        "QDQ-E105",
        "scale is not a constant",
        "calibrate on data and store the scale",
        sources.CONSTANT_SCALE,
        Verdict("contradicted", "built, with one kernel more", ("scale at run time",)),
        _static,
        {"trt11": "performance", "rtx": "performance"},
    ),
    Rule(
        "QDQ-E106",
        "scale type does not match",
        "give Q and DQ scales of the type of their data, with opset 19 or later for FP16 and BF16",
        sources.HEADER,
        Verdict(
            "contradicted",
            "built: the Q rounds in the type of its scale; refused is what then reads two types (QDQ-E125)",
            ("FP16 scale of an FP32 input",),
        ),
        _scale_type,
        {"rtx": "note"},
    ),
    Rule(
        "QDQ-E107",
        "codes are taken as INT8",
        "quantize symmetrically to INT8 (onnxruntime: QuantType.QInt8)",
        sources.CODES,
        Verdict(
            "contradicted",
            "built as INT8 [-128, 127]: no refusal, but another range than the file's",
            ("UINT8 zero-point 0", "INT32 zero-point 0", "UINT8 probabilities"),
        ),
        _taken_as_int8,
        {"trt11": "accuracy", "rtx": "accuracy"},
    ),
    Rule(
        "QDQ-E108",
        "scale is FP64",
        "store FP32 scales, or FP16 ones in an FP16 graph",
        sources.PARSER,
        Verdict("contradicted", "built as FP32", ("FP64 scale",)),
        _double,
        {"trt11": "note", "rtx": "note"},
    ),
)

ACCURACY: tuple[Rule, ...] = (
    Rule(
        "QDQ-A402",
        "infinite scale",
        "calibrate this point again without the infinite values",
        sources.PARSER,
        Verdict("confirmed", "built without a word", ("scale infinite",)),
        _infinite,
    ),
)
