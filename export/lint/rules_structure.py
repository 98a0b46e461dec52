"""Errors in the file and its wiring: ops, opset, codes that are never dequantized, operators that read two types."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import onnx
from onnx import NodeProto, TensorProto

from export.inventory import MULTIPLICATIONS
from export.lint import sources
from export.lint.findings import Hit, Rule, Subject, names
from export.lint.graph import LintGraph
from export.lint.limits import MIN_OPSET
from export.names import DEQUANTIZE, PAIR, QUANTIZE
from export.reading import FLOATS

# op type -> what it is
UNSUPPORTED = {
    "ConvInteger": "an integer op of the QOperator format",
    "DynamicQuantizeLinear": "dynamic quantization, a scale per inference",
    "MatMulInteger": "an integer op, as dynamic quantization writes it",
    "QLinearConv": "an integer op of the QOperator format",
    "QLinearMatMul": "an integer op of the QOperator format",
}
FOREIGN = "com.microsoft"


def _unsupported(node: NodeProto) -> bool:
    return node.domain == FOREIGN or (node.op_type in UNSUPPORTED and node.domain in ("", "ai.onnx"))


def _operators(subject: Subject) -> Iterator[Hit]:
    """Fires: integer and dynamic quantization ops, and every com.microsoft op (QAttention, DynamicQuantizeMatMul…).

    Leaves alone: the standard QuantizeLinear and DequantizeLinear, other domains (plugins).
    """
    found: dict[tuple[str, str], list[NodeProto]] = defaultdict(list)
    for node in subject.graph.nodes:
        if _unsupported(node):
            found[node.domain, node.op_type].append(node)
    for (domain, op_type), nodes in found.items():
        what = UNSUPPORTED.get(op_type, "an op of ONNX Runtime's own domain")
        shown = f"{domain}.{op_type}" if domain else op_type
        yield Hit(names(*nodes), f"{len(nodes)} × {shown}: {what}; TensorRT's parser has no importer for it")


def _opset(subject: Subject) -> Iterator[Hit]:
    """Fires: an opset below 13, where Q/DQ have no axis, or above the newest the release series parses.

    Leaves alone: opsets of other domains.
    """
    opset, release = subject.graph.opset, subject.platform.release
    if opset < MIN_OPSET:
        yield Hit((), f"opset {opset}: QuantizeLinear has no axis before {MIN_OPSET}, so weights cannot be per channel")
    elif opset > release.max_opset:
        yield Hit((), f"opset {opset}: {release.name} parses up to {release.max_opset}")


def _dangling(subject: Subject) -> Iterator[Hit]:
    """Fires: a Q whose codes reach an op that is no DQ, or the graph's output, or nothing.

    Leaves alone: codes that are only moved (Transpose, Reshape) before they are dequantized, and codes for the integer
    ops that QDQ-E121 names.
    """
    graph = subject.graph
    for node in graph.nodes:
        if node.op_type != QUANTIZE:
            continue
        consumers = graph.consumers(node.output[0])
        strangers = [reader for reader in consumers if reader.op_type != DEQUANTIZE and not _unsupported(reader)]
        if strangers:
            reason = f"its codes are read by {strangers[0].op_type}, not dequantized"
            yield Hit(names(node, *strangers), reason, node.output[0])
        elif not consumers:
            where = "returned by the graph" if graph.is_output(node) else "read by nothing"
            yield Hit(names(node), f"its codes are {where}; a Q needs a DequantizeLinear behind it", node.output[0])


def _doubled(subject: Subject) -> Iterator[Hit]:
    """Fires: a Q that reads integers, codes of another Q among them.

    Leaves alone: FP32, FP16 and BF16 data; tensors whose type nothing states.
    """
    graph = subject.graph
    for node in graph.nodes:
        kind = graph.types.get(node.input[0], TensorProto.UNDEFINED) if node.op_type == QUANTIZE else 0
        if kind and kind not in FLOATS:
            name = TensorProto.DataType.Name(kind)
            yield Hit(names(node), f"quantizes {name} data; a Q reads FP32, FP16 or BF16", node.input[0])


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
        "QDQ-E121",
        "unsupported quantized op",
        "export QuantizeLinear/DequantizeLinear pairs (onnxruntime: quantize_static, QuantFormat.QDQ)",
        sources.OPERATORS,
        _operators,
    ),
    Rule(
        "QDQ-E122",
        "opset outside what the parser takes",
        "export with opset 17 to 20 (19 or later for FP16 scales)",
        sources.OPSETS,
        _opset,
    ),
    Rule(
        "QDQ-E123",
        "QuantizeLinear without DequantizeLinear",
        "put a DequantizeLinear with the same scale in front of every reader of the codes",
        sources.CODES_ONLY,
        _dangling,
    ),
    Rule(
        "QDQ-E124",
        "QuantizeLinear on integer data",
        "remove the doubled Q, or dequantize in front of it",
        sources.HEADER,
        _doubled,
    ),
    Rule(
        "QDQ-E125",
        "operator reads two float types",
        "store scales in the type of the float part (FP16 from opset 19 on), or put a Cast in front of one operand",
        sources.TYPED,
        _mixed,
    ),
)
