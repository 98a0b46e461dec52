"""Errors in the file and its wiring: ops, opset, codes that are never dequantized, operators that read two types."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import onnx
from onnx import NodeProto, TensorProto

from export.inventory import MULTIPLICATIONS
from export.lint import sources
from export.lint.findings import Hit, Rule, Subject, Verdict, names
from export.lint.graph import LintGraph
from export.lint.patterns import quantizers
from export.names import DEQUANTIZE, PAIR, QUANTIZE
from export.reading import FLOATS, type_name

# op type -> what it is
UNSUPPORTED = {
    "ConvInteger": "an integer op of the QOperator format",
    "DynamicQuantizeLinear": "dynamic quantization, a scale per inference",
    "MatMulInteger": "an integer op, as dynamic quantization writes it",
    "QLinearConv": "an integer op of the QOperator format",
    "QLinearMatMul": "an integer op of the QOperator format",
}
# Standard ops without an importer that are not about quantization: what the parser's own supports_operator says.
UNKNOWN = frozenset(
    (
        *("AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
        *("CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "CumProd", "DFT", "DeformConv", "Det"),
        *("ImageDecoder", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss"),
        *("Optional", "OptionalGetElement", "OptionalHasElement", "RegexFullMatch", "SequenceAt", "SequenceConstruct"),
        *("SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap"),
        *("SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "SwiGLU"),
        *("TfIdfVectorizer", "Unique"),
    )
)
STANDARD = ("", "ai.onnx")
FOREIGN = "com.microsoft"
# Ops of that domain whose name and meaning are those of a standard op: the parser looks at the name alone.
BORROWED = frozenset({"DequantizeLinear", "Gelu", "LayerNormalization", "QuantizeLinear", "Trilu"})


def _unsupported(node: NodeProto) -> bool:
    if node.domain == FOREIGN:
        return node.op_type not in BORROWED
    return node.domain in STANDARD and (node.op_type in UNSUPPORTED or node.op_type in UNKNOWN)


def _operators(subject: Subject) -> Iterator[Hit]:
    """Fires: integer and dynamic quantization ops, standard ops without an importer, and com.microsoft ops (QAttention,
    DynamicQuantizeMatMul…).

    Leaves alone: the standard QuantizeLinear and DequantizeLinear, com.microsoft's Gelu, LayerNormalization, Trilu,
    QuantizeLinear and DequantizeLinear, other domains (QDQ-E128).
    """
    for (domain, op_type), nodes in _by_operator(subject, _unsupported).items():
        standard = "a standard op" if domain in STANDARD else "an op of ONNX Runtime's own domain"
        what = UNSUPPORTED.get(op_type, standard)
        shown = f"{domain}.{op_type}" if domain else op_type
        yield Hit(names(*nodes), f"{len(nodes)} × {shown}: {what}; TensorRT's parser has no importer for it")


def _plugins(subject: Subject) -> Iterator[Hit]:
    """Fires: ops of a domain that is neither ONNX's, nor ONNX Runtime's, nor TensorRT's.

    Leaves alone: standard ops, com.microsoft (QDQ-E121), functions of the model, the trt domain.
    """

    def custom(node: NodeProto) -> bool:
        return node.domain not in (*STANDARD, FOREIGN, "trt", "com.nvidia")

    for (domain, op_type), nodes in _by_operator(subject, custom).items():
        yield Hit(
            names(*nodes), f"{len(nodes)} × {domain}.{op_type}: parsed only where a plugin of that name is loaded"
        )


def _by_operator(subject: Subject, wanted: Callable[[NodeProto], bool]) -> Mapping[tuple[str, str], list[NodeProto]]:
    """Nodes that `wanted` names, by domain and operator."""
    found: dict[tuple[str, str], list[NodeProto]] = defaultdict(list)
    for node in subject.graph.nodes:
        if wanted(node):
            found[node.domain, node.op_type].append(node)
    return found


def _opset(subject: Subject) -> Iterator[Hit]:
    """Fires: an opset above the newest that the release series parses.

    Leaves alone: opsets of other domains, old opsets (QDQ-N311), TensorRT for RTX, whose parser takes any.
    """
    opset, release = subject.graph.opset, subject.platform.release
    if release.max_opset is not None and opset > release.max_opset:
        yield Hit((), f"opset {opset}: {release.name} parses up to {release.max_opset}")


def _inputs(subject: Subject) -> Iterator[Hit]:
    """Fires: a standard op with more inputs than it has in the file's opset, such as Unsqueeze with axes before 13.

    Leaves alone: ops that the opset does not have, which the parser may know all the same; Q and DQ.
    """
    opset = subject.graph.opset
    for node in subject.graph.nodes:
        if node.op_type in PAIR or node.domain not in STANDARD or not onnx.defs.has(node.op_type, opset, ""):
            continue
        most = onnx.defs.get_schema(node.op_type, opset, "").max_input
        if len(node.input) > most:
            yield Hit(names(node), f"{len(node.input)} inputs; in opset {opset} {node.op_type} has at most {most}")


def _strangers(graph: LintGraph, node: NodeProto) -> list[NodeProto]:
    """Readers of a Q's codes that neither dequantize them nor are an integer op that QDQ-E121 names."""
    found = graph.consumers(node.output[0])
    return [reader for reader in found if reader.op_type != DEQUANTIZE and not _unsupported(reader)]


def _dangling(subject: Subject) -> Iterator[Hit]:
    """Fires: a Q whose codes are computed with by an op that is no DQ.

    Leaves alone: codes that are only moved (Transpose, Reshape) before they are dequantized, codes for the integer ops
    that QDQ-E121 names, and codes that leave the graph or are cast (QDQ-E126).
    """
    graph = subject.graph
    for node in quantizers(graph.nodes):
        strangers = [reader for reader in _strangers(graph, node) if reader.op_type not in ("Cast", QUANTIZE)]
        if strangers:
            reason = f"its codes are read by {strangers[0].op_type}, not dequantized"
            yield Hit(names(node, *strangers), reason, node.output[0])


def _leaving(subject: Subject) -> Iterator[Hit]:
    """Fires: a Q whose codes are cast, or are the graph's output.

    Leaves alone: codes that are dequantized as well; codes for other ops (QDQ-E123); codes that nothing reads.
    """
    graph = subject.graph
    for node in quantizers(graph.nodes):
        casts = [reader for reader in _strangers(graph, node) if reader.op_type == "Cast"]
        if casts:
            yield Hit(names(node, *casts), "its codes are cast, not dequantized", node.output[0])
        elif graph.is_output(node):
            yield Hit(names(node), "its codes are returned by the graph", node.output[0])


def _doubled(subject: Subject) -> Iterator[Hit]:
    """Fires: a Q that reads integers, codes of another Q among them.

    Leaves alone: FP32, FP16 and BF16 data; tensors whose type nothing states.
    """
    graph = subject.graph
    for node in quantizers(graph.nodes):
        kind = graph.types.get(node.input[0], TensorProto.UNDEFINED)
        if kind and kind not in FLOATS and kind != TensorProto.DOUBLE:
            yield Hit(names(node), f"quantizes {type_name(kind)} data; a Q reads FP32, FP16 or BF16", node.input[0])


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
        "operator without an importer",
        "export QuantizeLinear/DequantizeLinear pairs (onnxruntime: quantize_static, QuantFormat.QDQ)",
        sources.OPERATORS,
        Verdict(
            "confirmed",
            'refused: "Plugin not found"; com.microsoft\'s Gelu, LayerNormalization, Q and DQ are built',
            ("DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul", "QAttention", "FastGelu", "Det"),
        ),
        _operators,
    ),
    Rule(
        "QDQ-E122",
        "opset newer than the parser takes",
        "export with opset 17 to 20 (19 or later for FP16 scales)",
        sources.OPSETS,
        Verdict("untested", "datacenter only: TensorRT for RTX builds every opset from 12 to 30", ("opset 30",)),
        _opset,
    ),
    Rule(
        "QDQ-E123",
        "codes are computed with",
        "put a DequantizeLinear with the same scale in front of every reader of the codes",
        sources.CODES_ONLY,
        Verdict("confirmed", "refused: an INT8 operand beside a float one", ("codes into MatMul",)),
        _dangling,
    ),
    Rule(
        "QDQ-E124",
        "QuantizeLinear on integer data",
        "remove the doubled Q, or dequantize in front of it",
        sources.HEADER,
        Verdict("confirmed", "refused: a type error of the parser", ("doubled Q",)),
        _doubled,
    ),
    Rule(
        "QDQ-E125",
        "operator reads two float types",
        "store scales in the type of the float part (FP16 from opset 19 on), or put a Cast in front of one operand",
        sources.TYPED,
        Verdict(
            "confirmed",
            'refused: "types Float and Half"',
            ("FP32 scales in FP16", "one FP32 scale in FP16"),
        ),
        _mixed,
    ),
    Rule(
        "QDQ-E126",
        "codes leave the graph",
        "put a DequantizeLinear with the same scale behind it",
        sources.CODES_ONLY,
        Verdict("contradicted", "built", ("codes as output", "codes into Cast")),
        _leaving,
        {"trt11": "note", "rtx": "note"},
    ),
    Rule(
        "QDQ-E127",
        "node has more inputs than its opset gives it",
        "declare the opset that the nodes are written in",
        sources.COMPILED,
        Verdict("confirmed", 'refused: "Invalid Node"', ("opset 12",)),
        _inputs,
    ),
    Rule(
        "QDQ-E128",
        "operator of a plugin",
        "load the plugin when the engine is built, or export standard ops",
        sources.COMPILED,
        Verdict("confirmed", 'refused: "Plugin not found"', ("plugin",)),
        _plugins,
        {"trt10": "note", "trt11": "note"},
    ),
)
