"""Linears beyond their own node: axes of weight scales, projections that are one product, results taken apart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto

from export.lint.graph import LintGraph
from export.lint.patterns import Linear, Patterns, output_axis
from export.names import DEQUANTIZE, QUANTIZE
from export.reading import attribute

PARTING = ("Gather", "Slice", "Split")
PROJECTIONS = ("query", "key", "value")


def parting_problem(graph: LintGraph, linear: Linear) -> str:
    """Return why a linear whose result is taken apart, as a merged q, k and v is, stays float; "" when it does not.

    It happens to weights with a scale per channel: Split and Slice take the product itself apart, and Gathers of which
    none is quantized move the scales. With the channels' ratios as a Mul behind the product it does not happen.
    """
    weight = graph.operand(linear.node.input[linear.weight]).dequantize
    if weight is None or channels(graph, weight) == 1:
        return ""
    partings = list(_partings(graph, linear.output))
    parts = [tensor for node in partings for tensor in node.output if tensor]
    if len(parts) < 2:
        return ""
    if any(node.op_type != "Gather" for node in partings):
        return f"{partings[0].op_type} takes its result apart, and its scales per channel with it"
    quantized = (reader.op_type == QUANTIZE for tensor in parts for reader in graph.consumers(tensor))
    return "" if any(quantized) else "its result is taken apart, and none of the parts is quantized"


def _partings(graph: LintGraph, tensor: str) -> Iterator[NodeProto]:
    """The first nodes behind `tensor`, through layout ops, that take only a part of it."""
    for reader in graph.readers(tensor):
        if reader.op_type in PARTING:
            yield reader
        elif graph.moves(reader) and not graph.is_output(reader):
            yield from _partings(graph, reader.output[0])


def unequal_projections(graph: LintGraph, patterns: Patterns) -> Iterator[tuple[Linear, ...]]:
    """Query, key and value linears of one quantized tensor whose weight scales keep them from being one product.

    One product needs a scale per channel in all of them, or one scale that is the same in all.
    """
    groups: dict[str, list[tuple[Linear, NodeProto]]] = {}
    for linear in patterns.linears:
        weight, activation = (
            graph.operand(linear.node.input[i]).dequantize for i in (linear.weight, 1 - linear.weight)
        )
        if patterns.role(linear) in PROJECTIONS and weight is not None and activation is not None:
            groups.setdefault(activation.input[0], []).append((linear, weight))
    for members in groups.values():
        scales = [graph.value(weight.input[1]) for _, weight in members]
        known = [scale for scale in scales if scale is not None]
        single = [float(np.asarray(scale, np.float64).reshape(-1)[0]) for scale in known if scale.size == 1]
        if len(known) == len(scales) and single and (len(single) < len(scales) or len(set(single)) > 1):
            yield tuple(linear for linear, _ in members)


def channels(graph: LintGraph, node: NodeProto) -> int:
    """Number of scales of a Q or DQ; 1 is per tensor, also when nothing states the size."""
    return graph.size(node.input[1]) or 1


def blocked(graph: LintGraph, node: NodeProto) -> bool:
    """Return whether the scale has one value per block: more than one dimension, more than one value."""
    return len(graph.shapes.get(node.input[1]) or ()) > 1 and channels(graph, node) > 1


def scaled_along_k(graph: LintGraph, linear: Linear) -> NodeProto | None:
    """The DQ of a linear's weight, when its scales lie along the axis that the product sums over; else None."""
    found = _weight_axis(graph, linear)
    wanted = output_axis(graph, linear.node, linear.weight)
    return found[0] if found is not None and wanted is not None and found[1] != wanted else None


def _weight_axis(graph: LintGraph, linear: Linear) -> tuple[NodeProto, int] | None:
    """The per-channel DQ of a linear's weight, and its axis as the product sees it."""
    transposes: list[NodeProto] = []
    node = graph.producer(linear.node.input[linear.weight])
    while node is not None and node.op_type in ("Transpose", "Cast", "Identity"):
        if node.op_type == "Transpose":
            transposes.append(node)
        node = graph.producer(node.input[0])
    if node is None or node.op_type != DEQUANTIZE or channels(graph, node) == 1 or blocked(graph, node):
        return None
    rank = len(graph.shapes.get(node.input[0]) or ())
    axis = int(attribute(node, "axis", 1))
    if not -rank <= axis < rank:
        return None  # QDQ-E114
    axis %= rank
    for transpose in reversed(transposes):
        axis = list(attribute(transpose, "perm", range(rank)[::-1])).index(axis)
    return node, axis
