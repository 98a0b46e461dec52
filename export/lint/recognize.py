"""All patterns of a graph, and the role of each linear in its encoder block."""

from __future__ import annotations

from dataclasses import replace

from onnx import NodeProto

from export.lint.attention import find_attentions
from export.lint.chains import find_gelus, find_norms
from export.lint.graph import LintGraph
from export.lint.patterns import (
    Attention,
    Linear,
    Patterns,
    Residual,
    ancestors,
    find_linears,
    find_residuals,
    linears_behind,
)
from export.names import PAIR

PROJECTIONS = {"q": "query", "k": "key", "v": "value"}


def recognize(graph: LintGraph) -> Patterns:
    """Find every pattern of `graph`."""
    linears = find_linears(graph)
    residuals = find_residuals(graph, linears)
    attentions = tuple(_with_heads(graph, attention, linears) for attention in find_attentions(graph))
    roles = _projections(graph, linears, attentions) | _branch_ends(graph, linears, residuals, attentions)
    return Patterns(linears, find_gelus(graph), find_norms(graph), residuals, attentions, roles)


def _with_heads(graph: LintGraph, attention: Attention, linears: tuple[Linear, ...]) -> Attention:
    """The attention with its number of heads from the width of the value projection, where no shape states it."""
    if attention.heads is not None or attention.head_size is None:
        return attention
    tensors = dict(attention.operands)
    query, value = (linears_behind(graph, tensors[role], linears) for role in ("q", "v"))
    if len(value) != 1 or value[0].n is None:
        return attention
    width = value[0].n // 3 if value == query else value[0].n  # one linear for q, k and v makes all three
    return replace(attention, heads=width // attention.head_size)


def _projections(graph: LintGraph, linears: tuple[Linear, ...], attentions: tuple[Attention, ...]) -> dict[str, str]:
    """Linears that make the query, key and value of an attention; one that makes several is "qkv"."""
    roles: dict[str, str] = {}
    for attention in attentions:
        for operand, tensor in attention.operands:
            if operand not in PROJECTIONS:
                continue
            for linear in linears_behind(graph, tensor, linears):
                key = linear.node.output[0]
                roles[key] = "qkv" if key in roles else PROJECTIONS[operand]
    return roles


def _branch_ends(
    graph: LintGraph,
    linears: tuple[Linear, ...],
    residuals: tuple[Residual, ...],
    attentions: tuple[Attention, ...],
) -> dict[str, str]:
    """Linears that end in a residual add: behind an attention, or behind other linears and an activation."""
    products = {attention.bmm2.output[0] for attention in attentions}
    roles: dict[str, str] = {}
    for residual in residuals:
        linear = residual.linear
        source = linear.node.input[1 - linear.weight]

        def moved(node: NodeProto) -> bool:
            return node.op_type in ("Cast", *PAIR) or graph.moves(node)

        if any(tensor in products for tensor in ancestors(graph, source, moved)):
            roles[linear.node.output[0]] = "attention_output"
            continue
        ups = linears_behind(graph, source, linears)
        if ups:
            roles[linear.node.output[0]] = "ffn_down"
            roles |= {up.node.output[0]: "ffn_up" for up in ups}
    return roles
