"""Performance of encoder blocks: residual adds, LayerNormalization, attention, tensors quantized more than once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from onnx import NodeProto

from export.lint import sources
from export.lint.findings import Hit, Rule, Subject, names
from export.lint.fusion import OPERAND_NAMES, is_float, limit_problems, missing_quantization, residual_quantized
from export.lint.graph import LintGraph
from export.lint.patterns import before, quantizers
from export.reading import label


def _half_residual(subject: Subject) -> Iterator[Hit]:
    """Fires: a residual add of which exactly one operand, the branch or the skip, is quantized.

    Leaves alone: both, neither (QDQ-N302), adds of a bias, a mask or embeddings.
    """
    for residual in subject.patterns.residuals:
        branch, skip = residual_quantized(subject.graph, residual)
        if branch == skip:
            continue
        if branch:
            reason = "its skip operand is float: the add runs in float and re-reads the layer input in full width"
            tensor = residual.node.input[residual.skip]
        else:
            reason = "its branch operand is float: the linear in front has to write its result in full width"
            tensor = residual.node.input[residual.branch]
        yield Hit(names(residual.node), reason, tensor)


def _blocked_norm(subject: Subject) -> Iterator[Hit]:
    """Fires: Q/DQ between an Add and the LayerNormalization behind it, or inside a written-out LayerNormalization.

    Leaves alone: Q/DQ on the operands of the Add and on the LayerNormalization's output.
    """
    graph = subject.graph
    for norm in subject.patterns.norms:
        maker, passed = before(graph, norm.input)
        if quantizers(passed) and maker is not None and maker.op_type == "Add":
            reason = "Q/DQ between an add and its LayerNormalization: they become two kernels"
            yield Hit(names(*quantizers(passed), maker, norm.node), reason, norm.input)
        if quantizers(norm.crossed):
            reason = "Q/DQ inside the written-out LayerNormalization: the pattern is not recognized"
            yield Hit(names(*quantizers(norm.crossed), norm.node), reason, norm.input)


def _broken_attention(subject: Subject) -> Iterator[Hit]:
    """Fires: an attention with some of the Q/DQ that INT8 fusion needs, but not all; says which are missing.

    Needed: on q and k before the first BMM, after softmax, on v, and after the second BMM. Leaves alone: all five;
    an attention none of whose four operands is quantized (QDQ-N301).
    """
    graph = subject.graph
    for attention in subject.patterns.attentions:
        missing = missing_quantization(graph, attention)
        if not missing or is_float(missing):
            continue
        listed = "; ".join(OPERAND_NAMES[role] for role in missing)
        tensors = dict(attention.operands) | {"out": attention.bmm2.output[0]}
        hint = _late_scale(graph, tensors[missing[0]])
        reason = f"not fused in INT8, Q/DQ missing on the {listed}{hint}"
        yield Hit(names(attention.softmax, attention.bmm1, attention.bmm2), reason, tensors[missing[0]])


def _late_scale(graph: LintGraph, tensor: str) -> str:
    """A hint when a Mul or Div stands between a DQ and the product."""
    node = graph.producer(graph.origin(tensor))
    if node is None or node.op_type not in ("Div", "Mul"):
        return ""
    computed = graph.computed_inputs(node)
    if len(computed) == 1 and graph.operand(computed[0]).quantized:
        return f" ({label(node)} lies between its DequantizeLinear and the product: move it in front of the Q)"
    return ""


def _limits(subject: Subject) -> Iterator[Hit]:
    """Fires: a quantized attention whose head size is not 16, 32 or 64, longer than 512 tokens, or below SM 7.5.

    Leaves alone: float attention, sizes that nothing states.
    """
    platform = subject.platform
    for attention in subject.patterns.attentions:
        if is_float(missing_quantization(subject.graph, attention)):
            continue
        for problem in limit_problems(attention, platform.sm, platform.sequence):
            yield Hit(names(attention.softmax, attention.bmm1, attention.bmm2), problem)


def _late_scaling(subject: Subject) -> Iterator[Hit]:
    """Fires: a Mul or Div by one number between the first BMM and the softmax.

    Leaves alone: a scale on q or k in front of the BMM, or folded into the query weights; masks.
    """
    for attention in subject.patterns.attentions:
        for node in attention.scalings:
            reason = "scales the scores behind the first BMM; fused attention wants q or k scaled before it"
            yield Hit(names(node, attention.bmm1, attention.softmax), reason, node.output[0])


def _scales_of(graph: LintGraph) -> dict[str, dict[bytes, list[NodeProto]]]:
    """Q nodes per activation tensor and scale; casts to the type at hand do not make another tensor."""
    found: dict[str, dict[bytes, list[NodeProto]]] = defaultdict(lambda: defaultdict(list))
    for node in quantizers(graph.nodes):
        if not graph.constant(node.input[0]):
            value = graph.value(node.input[1])
            key = node.input[1].encode() if value is None else value.astype("float64").tobytes()
            found[_renamed(graph, node.input[0])][key].append(node)
    return found


def _renamed(graph: LintGraph, tensor: str) -> str:
    """The tensor that `tensor` is the same values in the same order of."""
    node = graph.producer(tensor)
    while node is not None and node.op_type in ("Cast", "Dropout", "Identity") and graph.moves(node):
        tensor = node.input[0]
        node = graph.producer(tensor)
    return tensor


def _duplicates(subject: Subject) -> Iterator[Hit]:
    """Fires: two or more Q with one scale on one tensor.

    Leaves alone: one Q with several DQ; several scales (QDQ-P209).
    """
    for tensor, scales in _scales_of(subject.graph).items():
        for nodes in scales.values():
            if len(nodes) > 1:
                reason = (
                    f"{len(nodes)} Q with one scale on one tensor: merged only if the builder may rely on equal scales"
                )
                yield Hit(names(*nodes), reason, tensor)


def _two_scales(subject: Subject) -> Iterator[Hit]:
    """Fires: Q with different scales on one tensor.

    Leaves alone: equal scales (QDQ-P208), a Q on the dequantized tensor (QDQ-P204).
    """
    for tensor, scales in _scales_of(subject.graph).items():
        if len(scales) > 1:
            nodes = [group[0] for group in scales.values()]
            reason = f"{len(scales)} scales on one tensor: its producer can write only one of the INT8 forms"
            yield Hit(names(*nodes), reason, tensor)


RULES: tuple[Rule, ...] = (
    Rule(
        "QDQ-P202",
        "residual add with one float operand",
        "quantize both operands of the add, the skip with the Q that the layer's linears share; or neither",
        sources.RESIDUAL,
        _half_residual,
    ),
    Rule(
        "QDQ-P203",
        "attention whose INT8 fusion is broken",
        "place the missing pairs, or remove all of q, k, softmax and v so that the attention fuses in float",
        sources.ATTENTION,
        _broken_attention,
    ),
    Rule(
        "QDQ-P205",
        "Q/DQ between Add and LayerNormalization",
        "quantize what the add reads and what the LayerNormalization writes, not the tensor between them",
        sources.FUSIONS,
        _blocked_norm,
    ),
    Rule(
        "QDQ-P208",
        "one tensor quantized twice",
        "let all readers share one Q (the lowering pass share_quantizers does that)",
        sources.REFIT,
        _duplicates,
    ),
    Rule(
        "QDQ-P209",
        "two scales on one tensor",
        "calibrate one scale for all readers of a tensor, the largest of theirs",
        sources.PROPAGATION,
        _two_scales,
    ),
    Rule(
        "QDQ-P210",
        "attention outside the limits of INT8 fusion",
        "leave q, k, softmax and v in float, so that the attention fuses in FP16",
        sources.ATTENTION,
        _limits,
    ),
    Rule(
        "QDQ-P212",
        "attention scale behind the first BMM",
        "fold 1/sqrt(head size) into the query weights and bias, or multiply q in front of its Q",
        sources.SCALE_FIRST,
        _late_scaling,
    ),
)
