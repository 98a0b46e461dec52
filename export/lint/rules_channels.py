"""Errors in what a scale spans: per-channel activations, wrong axes, wrong sizes, blocks."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto

from export.lint import sources
from export.lint.findings import Hit, Rule, Subject, names
from export.lint.graph import LintGraph
from export.lint.patterns import Linear, output_axis
from export.names import DEQUANTIZE, QUANTIZE
from export.reading import attribute


def _channels(graph: LintGraph, node: NodeProto) -> int:
    """Number of scales of a Q or DQ; 1 is per tensor, also when nothing states the size."""
    return graph.size(node.input[1]) or 1


def _blocked(graph: LintGraph, node: NodeProto) -> bool:
    """Return whether the scale has one value per block: more than one dimension, more than one value."""
    return len(graph.shapes.get(node.input[1]) or ()) > 1 and _channels(graph, node) > 1


def _activations(subject: Subject) -> Iterator[Hit]:
    """Fires: a Q on a computed tensor with more than one scale.

    Leaves alone: weights (constants), one scale of whatever rank.
    """
    graph = subject.graph
    for node in graph.pairs:
        count = _channels(graph, node)
        if count > 1 and node.op_type == QUANTIZE and not graph.constant(node.input[0]):
            reason = f"{count} scales on an activation; activations are quantized per tensor"
            yield Hit(names(node), reason, node.input[1])


def _rooted(subject: Subject) -> Iterator[Hit]:
    """Fires: a per-channel DQ whose input is computed while its Q is per tensor, or absent.

    Leaves alone: weights; a DQ behind a per-channel Q, which QDQ-E111 names.
    """
    graph = subject.graph
    for node in graph.pairs:
        if node.op_type != DEQUANTIZE or graph.constant(node.input[0]) or _channels(graph, node) == 1:
            continue
        maker = graph.producer(graph.origin(node.input[0]))
        if maker is None or maker.op_type != QUANTIZE or _channels(graph, maker) == 1:
            yield Hit(names(node), "dequantizes a computed tensor per channel; only constants may be", node.input[1])


def _blocks(subject: Subject) -> Iterator[Hit]:
    """Fires: a scale of two or more dimensions, or with a block_size, on INT8 data.

    Leaves alone: one scale, one scale per channel.
    """
    for node in subject.graph.pairs:
        if _blocked(subject.graph, node) or attribute(node, "block_size", 0):
            shape = list(subject.graph.shapes.get(node.input[1]) or ())
            yield Hit(names(node), f"blocked scales {shape}; INT8 is per tensor or per channel", node.input[1])


def _size(subject: Subject) -> Iterator[Hit]:
    """Fires: a per-channel scale whose length is not that of its axis, an axis outside the tensor, an empty scale.

    Leaves alone: per-tensor scales, blocked ones (QDQ-E113), tensors of unknown shape.
    """
    graph = subject.graph
    for node in graph.pairs:
        if graph.size(node.input[1]) == 0:
            yield Hit(names(node), "its scale has no values", node.input[1])
            continue
        shape, count = graph.shapes.get(node.input[0]), _channels(graph, node)
        if count == 1 or shape is None or _blocked(graph, node):
            continue
        axis = int(attribute(node, "axis", 1))
        if not -len(shape) <= axis < len(shape):
            yield Hit(names(node), f"axis {axis} of a tensor with {len(shape)} dimensions", node.input[1])
        elif shape[axis] not in (None, count):
            yield Hit(names(node), f"{count} scales for the {shape[axis]} channels of axis {axis}", node.input[1])


def _axis_absent(subject: Subject) -> Iterator[Hit]:
    """Fires: a per-channel Q or DQ without the axis attribute.

    Leaves alone: per-tensor pairs, an explicit axis.
    """
    for node in subject.graph.pairs:
        if attribute(node, "axis") is None and _channels(subject.graph, node) > 1:
            reason = "no axis attribute: ONNX means axis 1, TensorRT's parser takes axis 0"
            yield Hit(names(node), reason, node.input[1])


def _reduction_axis(subject: Subject) -> Iterator[Hit]:
    """Fires: a weight scaled along the axis that the product sums over, seen through transposes and Gemm's transB.

    Leaves alone: scales on the output channels; per-tensor weights; weights that are reshaped on the way.
    """
    graph = subject.graph
    for linear in subject.patterns.linears:
        found = _weight_axis(graph, linear)
        if found is None:
            continue
        node, axis = found
        wanted = output_axis(graph, linear.node, linear.weight)
        if wanted is not None and axis != wanted:
            reason = (
                f"the product sums over axis {axis} of the weight, which carries the scales: they cannot be applied "
                f"behind an INT8 product; the output channels are axis {wanted}"
            )
            yield Hit(names(node, linear.node), reason, node.input[1])


def _weight_axis(graph: LintGraph, linear: Linear) -> tuple[NodeProto, int] | None:
    """The per-channel DQ of a linear's weight, and its axis as the product sees it."""
    transposes: list[NodeProto] = []
    node = graph.producer(linear.node.input[linear.weight])
    while node is not None and node.op_type in ("Transpose", "Cast", "Identity"):
        if node.op_type == "Transpose":
            transposes.append(node)
        node = graph.producer(node.input[0])
    if node is None or node.op_type != DEQUANTIZE or _channels(graph, node) == 1 or _blocked(graph, node):
        return None
    rank = len(graph.shapes.get(node.input[0]) or ())
    axis = int(attribute(node, "axis", 1))
    if not -rank <= axis < rank:
        return None  # QDQ-E114
    axis %= rank
    for transpose in reversed(transposes):
        axis = list(attribute(transpose, "perm", range(rank)[::-1])).index(axis)
    return node, axis


RULES: tuple[Rule, ...] = (
    Rule(
        "QDQ-E111",
        "activation quantized per channel",
        "use one scale per activation tensor; only weights may have one per output channel",
        sources.HEADER,
        _activations,
    ),
    Rule(
        "QDQ-E112",
        "per-channel DequantizeLinear on a computed tensor",
        "dequantize activations with the one scale of their Q",
        sources.HEADER,
        _rooted,
    ),
    Rule(
        "QDQ-E113",
        "blocked scales on INT8",
        "use per-channel scales for INT8 weights; blocks exist for INT4, FP8 and FP4 only",
        sources.HEADER,
        _blocks,
    ),
    Rule(
        "QDQ-E114",
        "scale does not fit its tensor",
        "one scale per output channel, with the axis attribute naming that dimension",
        sources.PARSER,
        _size,
    ),
    Rule(
        "QDQ-E115",
        "per-channel pair without axis",
        "write the axis attribute: 0 for a Gemm weight with transB=1, 1 for a MatMul weight (K, N)",
        sources.PARSER,
        _axis_absent,
    ),
    Rule(
        "QDQ-E116",
        "weight scaled along the reduction axis",
        "quantize per output channel: axis 0 of (N, K), before a Transpose or with transB=1, axis 1 of (K, N)",
        sources.AXIS,
        _reduction_axis,
    ),
)
