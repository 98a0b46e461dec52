"""Errors in what a scale spans: per-channel activations, wrong axes, wrong sizes, blocks."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto, TensorProto

from export.lint import sources
from export.lint.findings import Hit, Rule, Subject, Verdict, names
from export.lint.graph import LintGraph
from export.lint.limits import RTX
from export.lint.projections import blocked, channels, scaled_along_k
from export.lint.rules_values import coded_type
from export.names import DEQUANTIZE, QUANTIZE
from export.reading import attribute

BLOCKED_TYPES = frozenset({TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1})


def _activations(subject: Subject) -> Iterator[Hit]:
    """Fires: a Q on a computed tensor with more than one scale.

    Leaves alone: weights (constants), one scale of whatever rank.
    """
    graph = subject.graph
    for node in graph.pairs:
        count = channels(graph, node)
        if count > 1 and node.op_type == QUANTIZE and not graph.constant(node.input[0]):
            reason = f"{count} scales on an activation; activations are quantized per tensor"
            yield Hit(names(node), reason, node.input[1])


def _rooted(subject: Subject) -> Iterator[Hit]:
    """Fires: a per-channel DQ whose input is computed while its Q is per tensor, or absent.

    Leaves alone: weights; a DQ behind a per-channel Q, which QDQ-E111 names.
    """
    graph = subject.graph
    for node in graph.pairs:
        if node.op_type != DEQUANTIZE or graph.constant(node.input[0]) or channels(graph, node) == 1:
            continue
        maker = graph.producer(graph.origin(node.input[0]))
        if maker is None or maker.op_type != QUANTIZE or channels(graph, maker) == 1:
            yield Hit(names(node), "dequantizes a computed tensor per channel; only constants may be", node.input[1])


def _blocks(subject: Subject) -> Iterator[Hit]:
    """Fires: a scale of two or more dimensions with several values on INT8 data; for TensorRT for RTX on INT4, too.

    Leaves alone: one scale, one scale per channel whatever its block_size; blocks on INT4, FP8 and FP4 for TensorRT.
    """
    graph = subject.graph
    for node in graph.pairs:
        kind = coded_type(graph, node)
        refused = kind == TensorProto.INT4 and subject.platform.target == RTX
        if blocked(graph, node) and (refused or kind not in BLOCKED_TYPES):
            shape = list(graph.shapes.get(node.input[1]) or ())
            what = "not built by its compiler" if refused else "INT8 is per tensor or per channel"
            yield Hit(names(node), f"blocked scales {shape}; {what}", node.input[1])


def _size(subject: Subject) -> Iterator[Hit]:
    """Fires: a scale without values, one value in several dimensions, a per-channel scale whose length is not that of
    its axis, an axis outside the tensor.

    Leaves alone: scalars and [1], blocked scales (QDQ-E113), tensors of unknown shape.
    """
    graph = subject.graph
    for node in graph.pairs:
        problem = _size_problem(graph, node)
        if problem:
            yield Hit(names(node), problem, node.input[1])


def _size_problem(graph: LintGraph, node: NodeProto) -> str:
    """Return the reason why a scale cannot be laid over its tensor; "" when it can."""
    if graph.size(node.input[1]) == 0:
        return "its scale has no values"
    shape, count = graph.shapes.get(node.input[0]), channels(graph, node)
    rank = len(graph.shapes.get(node.input[1]) or ())
    if count == 1:
        return f"its one scale has {rank} dimensions; it must be a scalar or [1]" if rank > 1 else ""
    if shape is None or blocked(graph, node):
        return ""
    axis = int(attribute(node, "axis", 1))
    if not -len(shape) <= axis < len(shape):
        return f"axis {axis} of a tensor with {len(shape)} dimensions"
    known = shape[axis] not in (None, count)
    return f"{count} scales for the {shape[axis]} channels of axis {axis}" if known else ""


def _axis_absent(subject: Subject) -> Iterator[Hit]:
    """Fires: a per-channel Q or DQ without the axis attribute.

    Leaves alone: per-tensor pairs, an explicit axis.
    """
    for node in subject.graph.pairs:
        if attribute(node, "axis") is None and channels(subject.graph, node) > 1:
            reason = "no axis attribute: ONNX means axis 1, TensorRT's parser takes axis 0"
            yield Hit(names(node), reason, node.input[1])


def _int4_beside_int8(subject: Subject) -> Iterator[Hit]:
    """Fires: a linear whose INT4 weight has one scale and whose input is quantized.

    Leaves alone: INT4 weights with a scale per channel, which are expanded; INT4 weights of a float input.
    """
    graph = subject.graph
    for linear in subject.patterns.linears:
        weight, activation = (graph.operand(linear.node.input[i]) for i in (linear.weight, 1 - linear.weight))
        found = weight.dequantize
        if found is None or not activation.quantized or graph.types.get(found.input[0]) != TensorProto.INT4:
            continue
        if channels(graph, found) == 1:
            reason = "multiplies INT4 by INT8 codes, each with one scale: the compiler has no such product"
            yield Hit(names(linear.node, found), reason, found.input[1])


def _reduction_axis(subject: Subject) -> Iterator[Hit]:
    """Fires: a weight scaled along the axis that the product sums over, seen through transposes and Gemm's transB.

    Leaves alone: scales on the output channels; per-tensor weights; weights that are reshaped on the way.
    """
    graph = subject.graph
    for linear in subject.patterns.linears:
        node = scaled_along_k(graph, linear)
        if node is not None:
            reason = "the scales lie along the axis that the product sums over: no INT8 product can be scaled by them"
            yield Hit(names(node, linear.node), reason, node.input[1])


RULES: tuple[Rule, ...] = (
    Rule(
        "QDQ-E111",
        "activation quantized per channel",
        "use one scale per activation tensor; only weights may have one per output channel",
        sources.HEADER,
        Verdict(
            "confirmed",
            "refused in an FP32 body; in FP16 built, with the linears behind it in float",
            ("Q per channel",),
        ),
        _activations,
    ),
    Rule(
        "QDQ-E112",
        "per-channel DequantizeLinear on a computed tensor",
        "dequantize activations with the one scale of their Q",
        sources.HEADER,
        Verdict(
            "confirmed",
            "refused in an FP32 body; in FP16 built, with the linears behind it in float",
            ("DQ per channel",),
        ),
        _rooted,
    ),
    Rule(
        "QDQ-E113",
        "blocked scales on INT8",
        "use per-channel scales for INT8 weights; blocks exist for INT4, FP8 and FP4 only",
        sources.HEADER,
        Verdict(
            "confirmed",
            "refused by the graph compiler, INT4 like INT8",
            ("blocked INT8 weight", "blocked INT4 weight"),
        ),
        _blocks,
    ),
    Rule(
        "QDQ-E114",
        "scale does not fit its tensor",
        "one scale per output channel, with the axis attribute naming that dimension, or a scalar",
        sources.PARSER,
        Verdict(
            "confirmed",
            'refused: "The number of scales is not equal", "must index a dimension", "no coefficients"',
            ("31 scales for 32 channels", "axis outside", "empty scale", "one scale [1, 1]"),
        ),
        _size,
    ),
    Rule(
        "QDQ-E115",
        "per-channel pair without axis",
        "write the axis attribute: 0 for a Gemm weight with transB=1, 1 for a MatMul weight (K, N)",
        sources.PARSER,
        Verdict("contradicted", "built in INT8: axis 1, as ONNX means it", ("no axis",)),
        _axis_absent,
        {"trt11": "note", "rtx": "note"},
    ),
    Rule(
        "QDQ-E116",
        "weight scaled along the reduction axis",
        "quantize per output channel: axis 0 of (N, K), before a Transpose or with transB=1, axis 1 of (K, N)",
        sources.AXIS,
        Verdict(
            "contradicted",
            "built, this linear in float",
            ("weight scaled along K", "transposed weight scaled along K"),
        ),
        _reduction_axis,
        {"trt11": "performance", "rtx": "performance"},
    ),
    Rule(
        "QDQ-E117",
        "INT4 weight with one scale beside a quantized input",
        "use a scale per output channel, or leave the input in float",
        sources.COMPILED,
        Verdict("confirmed", "refused by the graph compiler: operands of two types", ("INT4 weight with one scale",)),
        _int4_beside_int8,
    ),
)
