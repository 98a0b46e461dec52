"""Errors in element types: operators that read two floating-point types at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import onnx
from onnx import NodeProto, TensorProto

from export.inventory import MULTIPLICATIONS
from export.lint import sources
from export.lint.findings import Hit, Rule, Subject, names
from export.lint.graph import LintGraph
from export.names import PAIR
from export.reading import FLOATS


def _mixed(subject: Subject) -> Iterator[Hit]:
    """Fires: an operator that reads two float types, such as FP16 and the FP32 that a DQ with an FP32 scale makes.

    Leaves alone: Q and DQ (QDQ-E106), operands that ONNX allows to differ, plugins, unknown types, and operators behind
    one that fires.
    """
    graph = subject.graph
    unsure: set[str] = set()  # results of such an operator and what is computed from them: their type is a guess
    for node in graph.nodes:
        if node.op_type in (*PAIR, "Cast"):
            continue
        kinds = _float_types(graph, node, unsure)
        if kinds:
            scaled = [pair for tensor in kinds.values() if (pair := _dequantize(graph, tensor))]
            read = " and ".join(f"{kind.upper()} ({tensor})" for kind, tensor in kinds.items())
            yield Hit(
                names(node, *scaled), f"reads {read}: TensorRT converts nothing on its own and refuses the network"
            )
        if kinds or not unsure.isdisjoint(node.input):
            unsure.update(node.output)


def _float_types(graph: LintGraph, node: NodeProto, unsure: set[str]) -> dict[str, str]:
    """Float types and an operand of each, where operands that ONNX defines to be of one type have several."""
    opset = max(graph.opset, 1)
    if not onnx.defs.has(node.op_type, opset, node.domain):
        return {}
    formals = onnx.defs.get_schema(node.op_type, opset, node.domain).inputs
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for index, tensor in enumerate(node.input if formals else ()):
        kind = FLOATS.get(graph.types.get(tensor, TensorProto.UNDEFINED))
        if kind and tensor not in unsure:
            found[formals[min(index, len(formals) - 1)].type_str].setdefault(kind, tensor)
    return next((kinds for kinds in found.values() if len(kinds) > 1), {})


def _dequantize(graph: LintGraph, tensor: str) -> NodeProto | None:
    """The DQ that gave `tensor` its type, seen through a product; None where it is another operator."""
    node = graph.producer(graph.origin(tensor))
    if node is not None and node.op_type in MULTIPLICATIONS:
        tensor = node.input[0]
    return graph.operand(tensor).dequantize


RULES: tuple[Rule, ...] = (
    Rule(
        "QDQ-E125",
        "operator reads two float types",
        "store scales in the type of the float part (FP16 from opset 19 on), or put a Cast in front of one operand",
        sources.TYPED,
        _mixed,
    ),
)
