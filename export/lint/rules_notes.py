"""Notes: nothing is wrong, but the reader should know what stays in float and what depends on the exact release."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto, TensorProto

from export.lint import sources
from export.lint.bodies import inner_nodes, quantizes_inside
from export.lint.findings import Hit, Rule, Subject, Verdict, names
from export.lint.fusion import gemm_problem, is_float, limit_problems, missing_quantization, shares_skip
from export.lint.graph import HALF_SCALES
from export.lint.limits import MIN_OPSET
from export.lint.patterns import quantizers
from export.names import PAIR
from export.reading import attribute


def _has_quantizers(subject: Subject) -> bool:
    return any(True for _ in subject.graph.pairs)


def _float_attention(subject: Subject) -> Iterator[Hit]:
    """Fires: attentions that could be INT8 and none of whose operands is quantized, in a graph with Q/DQ.

    Leaves alone: attentions with any of q, k, softmax and v quantized (QDQ-P203 or INT8); those outside the limits of
    INT8 fusion (QDQ-P210), where float is right.
    """
    platform = subject.platform
    left = [
        attention.softmax
        for attention in subject.patterns.attentions
        if is_float(missing_quantization(subject.graph, attention))
        and not limit_problems(subject.graph, attention, platform.sm, platform.sequence)
    ]
    if left and _has_quantizers(subject):
        count = f"{len(left)} of {len(subject.patterns.attentions)} attentions"
        yield Hit(
            names(*left), f"{count} run in float, each with one kernel more than in INT8: a transpose of its output"
        )


def _float_residuals(subject: Subject) -> Iterator[Hit]:
    """Fires: residual adds behind an INT8 linear whose skip does not read the Q that linears multiply.

    Leaves alone: adds behind float linears; a skip that shares that Q, times a constant or not.
    """
    graph = subject.graph
    left = [
        residual.node
        for residual in subject.patterns.residuals
        if not shares_skip(graph, residual) and not gemm_problem(graph, residual.linear)
    ]
    if left:
        yield Hit(names(*left), f"{len(left)} residual adds read their skip in float although the linears are INT8")


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


def _half_scales(subject: Subject) -> Iterator[Hit]:
    """Fires: FP16 or BF16 scales before opset 19, on data of their type.

    Leaves alone: FP32 scales, opset 19 and later, scales of another type than their data (QDQ-E106).
    """
    graph = subject.graph
    if graph.opset >= HALF_SCALES:
        return
    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    found = [node for node in graph.pairs if graph.types.get(node.input[1]) in halves]
    if found:
        reason = f"{len(found)} scales are FP16 or BF16, which ONNX has from opset 19 on; this file has {graph.opset}"
        yield Hit(names(*found), reason)


def _old_opset(subject: Subject) -> Iterator[Hit]:
    """Fires: an opset below 13 in a graph with scales per channel.

    Leaves alone: opset 13 and later, graphs with one scale per tensor.
    """
    graph = subject.graph
    found = [node for node in graph.pairs if (graph.size(node.input[1]) or 1) > 1]
    if found and graph.opset < MIN_OPSET:
        yield Hit(
            names(*found), f"opset {graph.opset}: Q and DQ have no axis before {MIN_OPSET}; other runtimes refuse it"
        )


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
    if release.max_ir is not None and version > release.max_ir:
        yield Hit((), f"IR version {version}; the ONNX package of {release.name} knows up to {release.max_ir}")


def _late_opset(subject: Subject) -> Iterator[Hit]:
    """Fires: an opset that some releases of the series parse and others do not.

    Leaves alone: opsets all of them parse, and those none does (QDQ-E122).
    """
    opset, release = subject.graph.opset, subject.platform.release
    if release.sure_opset is None or release.max_opset is None:
        return
    if release.sure_opset < opset <= release.max_opset:
        yield Hit((), f"opset {opset}: every {release.name} parses up to {release.sure_opset}, only later ones more")


def _nothing(subject: Subject) -> Iterator[Hit]:
    """Fires: a graph without any QuantizeLinear or DequantizeLinear.

    Leaves alone: everything else, pairs inside control flow among it.
    """
    if not _has_quantizers(subject) and not quantizes_inside(subject.graph):
        yield Hit((), "no QuantizeLinear and no DequantizeLinear: every layer runs in float")


def _control_flow(subject: Subject) -> Iterator[Hit]:
    """Fires: If, Loop, Scan and any other op with a graph inside.

    Leaves alone: functions of the model, which are looked into as if they were written out.
    """
    for node in subject.graph.nodes:
        inner = list(inner_nodes(node))
        if inner:
            pairs = sum(one.op_type in PAIR for one in inner)
            yield Hit(
                names(node),
                f"{node.op_type} with {len(inner)} nodes inside, {pairs} of them Q or DQ: checked as graphs of their "
                "own; the fusion map leaves them out, and nothing fuses across their border",
            )


RULES: tuple[Rule, ...] = (
    Rule(
        "QDQ-N301",
        "attention in float",
        "quantize q, k, softmax, v and the output for INT8 fused attention, where accuracy allows",
        sources.ATTENTION,
        Verdict("confirmed", "one fused FP16 kernel, and one more that transposes its output", ("float attention",)),
        _float_attention,
    ),
    Rule(
        "QDQ-N302",
        "residual add in float",
        "let the skip read the Q that the layer's linears share: it is in memory as INT8 anyway",
        sources.COMPILED,
        Verdict(
            "confirmed",
            "INT8 is read only where the skip shares the linears' Q; a Q of its own is rounded in registers",
            ("no pair on the add", "skip with its own Q"),
        ),
        _float_residuals,
    ),
    Rule(
        "QDQ-N303",
        "encoder linear in float",
        "quantize input and weight, unless accuracy asks for float here",
        sources.PLACEMENT,
        Verdict("confirmed", "this linear in float", ("Q behind a float linear",)),
        _float_linears,
    ),
    Rule(
        "QDQ-N304",
        "float ops in FP32",
        "write the float part of the graph in FP16 (qdq compile --target tensorrt does)",
        sources.TYPED,
        Verdict("confirmed", "every float tensor in FP32, 1.7 times the bytes of a layer", ("canonical",)),
        _full_width,
    ),
    Rule(
        "QDQ-N305",
        "QuantizeLinear without zero-point",
        "store an INT8 zero-point of zeros",
        sources.PARSER,
        Verdict("confirmed", "built as INT8", ("no zero-point",)),
        _implied_type,
    ),
    Rule(
        "QDQ-N306",
        "QuantizeLinear on a scalar",
        "do not quantize scalars",
        sources.HEADER,
        Verdict("confirmed", "built, with two kernels more", ("quantized scalar",)),
        _scalars,
    ),
    Rule(
        "QDQ-N307",
        "IR version newer than the parser's ONNX",
        "save the file with an older IR version (10 suits every release)",
        sources.OPSETS,
        Verdict("untested", "datacenter only: TensorRT for RTX builds IR versions up to 15", ("IR version 15",)),
        _ir_version,
    ),
    Rule(
        "QDQ-N308",
        "opset of later releases only",
        "export with opset 20 or older, or require a later release",
        sources.OPSETS,
        Verdict("untested", "datacenter only: TensorRT for RTX builds every opset from 12 to 30", ("opset 25",)),
        _late_opset,
    ),
    Rule(
        "QDQ-N309",
        "nothing is quantized",
        "check the right file: the one a quantizer wrote",
        sources.HEADER,
        Verdict("confirmed", "no INT8 kernel", ("nothing quantized",)),
        _nothing,
    ),
    Rule(
        "QDQ-N310",
        "half scales before opset 19",
        "declare opset 19 or later; other runtimes refuse the file",
        sources.PARSER,
        Verdict("confirmed", "built in INT8", ("FP16, opset 17",)),
        _half_scales,
    ),
    Rule(
        "QDQ-N311",
        "scales per channel before opset 13",
        "declare opset 13 or later",
        sources.PARSER,
        Verdict("confirmed", "built in INT8", ("opset 12, its own ops",)),
        _old_opset,
    ),
    Rule(
        "QDQ-N312",
        "control flow",
        "export without it: trace the model with fixed choices, and unroll loops of a fixed count",
        sources.OPERATORS,
        Verdict("untested", "no graph with control flow was compiled"),
        _control_flow,
    ),
)
