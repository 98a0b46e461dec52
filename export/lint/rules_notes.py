"""Notes: nothing is wrong, but the reader should know what stays in float and what depends on the exact release."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto

from export.lint import sources
from export.lint.findings import Hit, Rule, Subject, names
from export.lint.fusion import gemm_problem, is_float, missing_quantization, residual_quantized
from export.lint.limits import MIN_OPSET
from export.lint.patterns import quantizers
from export.reading import attribute


def _has_quantizers(subject: Subject) -> bool:
    return any(True for _ in subject.graph.pairs)


def _float_attention(subject: Subject) -> Iterator[Hit]:
    """Fires: attentions none of whose operands is quantized, in a graph with Q/DQ.

    Leaves alone: attentions with any of q, k, softmax and v quantized (QDQ-P203 or INT8).
    """
    left = [
        attention.softmax
        for attention in subject.patterns.attentions
        if is_float(missing_quantization(subject.graph, attention))
    ]
    if left and _has_quantizers(subject):
        count = f"{len(left)} of {len(subject.patterns.attentions)} attentions"
        yield Hit(names(*left), f"{count} run in float; a Q behind their output is a kernel of its own")


def _float_residuals(subject: Subject) -> Iterator[Hit]:
    """Fires: residual adds with two float operands behind an INT8 linear.

    Leaves alone: adds behind float linears, adds with one (QDQ-P202) or two quantized operands.
    """
    left = [
        residual.node
        for residual in subject.patterns.residuals
        if not any(residual_quantized(subject.graph, residual)) and not gemm_problem(subject.graph, residual.linear)
    ]
    if left:
        yield Hit(names(*left), f"{len(left)} residual adds read float although the linears in front are INT8")


def _float_linears(subject: Subject) -> Iterator[Hit]:
    """Fires: encoder linears with neither operand quantized, in a graph with Q/DQ.

    Leaves alone: pooler, heads and other linears outside the encoder blocks.
    """
    left = [
        linear.node
        for linear in subject.patterns.linears
        if subject.patterns.role(linear)
        and not any(subject.graph.operand(tensor).quantized for tensor in linear.node.input[:2])
    ]
    if left and _has_quantizers(subject):
        yield Hit(names(*left), f"{len(left)} encoder linears have no Q/DQ and run in float")


def _full_width(subject: Subject) -> Iterator[Hit]:
    """Fires: LayerNormalization, GELU, softmax and residual adds whose ONNX type is FP32, in a graph with Q/DQ.

    Leaves alone: the same ops in FP16 or BF16; graphs without Q/DQ.
    """
    if not _has_quantizers(subject):
        return
    graph, patterns = subject.graph, subject.patterns
    places: list[tuple[NodeProto, str]] = [(norm.node, norm.input) for norm in patterns.norms]
    places += [(gelu.node, gelu.input) for gelu in patterns.gelus]
    places += [(attention.softmax, attention.softmax.input[0]) for attention in patterns.attentions]
    places += [(residual.node, residual.node.output[0]) for residual in patterns.residuals]
    places.sort(key=lambda place: graph.order[place[0].output[0]])
    wide = [node for node, tensor in places if graph.float_type(tensor) == "fp32"]
    if wide:
        reason = f"{len(wide)} of {len(places)} float ops around the INT8 products are FP32 and run in FP32"
        yield Hit(names(*wide), reason)


def _implied_type(subject: Subject) -> Iterator[Hit]:
    """Fires: Q without zero-point and output_dtype.

    Leaves alone: a DequantizeLinear without zero-point, whose type is that of its input.
    """
    graph = subject.graph
    bare = [
        node
        for node in quantizers(graph.nodes)
        if (len(node.input) < 3 or not node.input[2]) and not attribute(node, "output_dtype", 0)
    ]
    if bare:
        yield Hit(names(*bare), "no zero-point: ONNX means UINT8, TensorRT takes INT8, so runtimes disagree below zero")


def _scalars(subject: Subject) -> Iterator[Hit]:
    """Fires: Q of a tensor without dimensions.

    Leaves alone: every other rank, unknown shapes.
    """
    graph = subject.graph
    found = [node for node in quantizers(graph.nodes) if graph.shapes.get(node.input[0]) == ()]
    if found:
        yield Hit(names(*found), "quantizes a scalar: the layer takes no 0-D data, the parser has to reshape it")


def _ir_version(subject: Subject) -> Iterator[Hit]:
    """Fires: an IR version newer than the newest ONNX package of the release series knows.

    Leaves alone: older and equal ones; the parser itself reads the number only to log it.
    """
    version, release = subject.graph.model.ir_version, subject.platform.release
    if version > release.max_ir:
        yield Hit((), f"IR version {version}; the ONNX package of {release.name} knows up to {release.max_ir}")


def _late_opset(subject: Subject) -> Iterator[Hit]:
    """Fires: an opset that some releases of the series parse and others do not.

    Leaves alone: opsets all of them parse, and those none does (QDQ-E122).
    """
    opset, release = subject.graph.opset, subject.platform.release
    if opset >= MIN_OPSET and release.sure_opset < opset <= release.max_opset:
        yield Hit((), f"opset {opset}: every {release.name} parses up to {release.sure_opset}, only later ones more")


def _nothing(subject: Subject) -> Iterator[Hit]:
    """Fires: a graph without any QuantizeLinear or DequantizeLinear.

    Leaves alone: everything else.
    """
    if not _has_quantizers(subject):
        yield Hit((), "no QuantizeLinear and no DequantizeLinear: every layer runs in float")


RULES: tuple[Rule, ...] = (
    Rule(
        "QDQ-N301",
        "attention in float",
        "quantize q, k, softmax, v and the output for INT8 fused attention, where accuracy allows",
        sources.ATTENTION,
        _float_attention,
    ),
    Rule(
        "QDQ-N302",
        "residual add in float",
        "quantize both operands of the add where accuracy allows: it halves what the add and its GEMM move",
        sources.RESIDUAL,
        _float_residuals,
    ),
    Rule(
        "QDQ-N303",
        "encoder linear in float",
        "quantize input and weight, unless accuracy asks for float here",
        sources.PLACEMENT,
        _float_linears,
    ),
    Rule(
        "QDQ-N304",
        "float ops in FP32",
        "write the float part of the graph in FP16 (qdq compile --target tensorrt does)",
        sources.TYPED,
        _full_width,
    ),
    Rule(
        "QDQ-N305",
        "QuantizeLinear without zero-point",
        "store an INT8 zero-point of zeros",
        sources.PARSER,
        _implied_type,
    ),
    Rule(
        "QDQ-N306",
        "QuantizeLinear on a scalar",
        "do not quantize scalars",
        sources.HEADER,
        _scalars,
    ),
    Rule(
        "QDQ-N307",
        "IR version newer than the parser's ONNX",
        "save the file with an older IR version (10 suits every release)",
        sources.OPSETS,
        _ir_version,
    ),
    Rule(
        "QDQ-N308",
        "opset of later releases only",
        "export with opset 20 or older, or require a later release",
        sources.OPSETS,
        _late_opset,
    ),
    Rule(
        "QDQ-N309",
        "nothing is quantized",
        "check the right file: the one a quantizer wrote",
        sources.HEADER,
        _nothing,
    ),
)
