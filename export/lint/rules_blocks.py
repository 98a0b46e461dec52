"""Performance of encoder blocks: residual adds, LayerNormalization, attention, tensors quantized more than once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from onnx import NodeProto

from export.inventory import MULTIPLICATIONS
from export.lint import sources
from export.lint.findings import Hit, Rule, Subject, Verdict, names
from export.lint.fusion import (
    OPERAND_NAMES,
    fuses_in_float,
    is_float,
    limit_problems,
    missing_quantization,
    quantized_scores,
    residual_quantized,
)
from export.lint.graph import LintGraph
from export.lint.patterns import before, quantizers
from export.names import DEQUANTIZE
from export.reading import label


def _half_residual(subject: Subject) -> Iterator[Hit]:
    """Fires: a residual add whose branch is quantized and whose skip is float.

    Leaves alone: both, neither, the skip alone; adds of a bias, a mask or embeddings.
    """
    for residual in subject.patterns.residuals:
        branch, skip = residual_quantized(subject.graph, residual)
        if branch and not skip:
            reason = "its skip operand is float: the add runs in float and re-reads the layer input in full width"
            yield Hit(names(residual.node), reason, residual.node.input[residual.skip])


def _blocked_norm(subject: Subject) -> Iterator[Hit]:
    """Fires: Q/DQ between an Add and the LayerNormalization behind it, or inside a written-out LayerNormalization.

    Leaves alone: Q/DQ on the operands of the Add and on the LayerNormalization's output.
    """
    graph = subject.graph
    for norm in subject.patterns.norms:
        maker, passed = before(graph, norm.input)
        if quantizers(passed) and maker is not None and maker.op_type == "Add":
            reason = "Q/DQ between an add and its LayerNormalization"
            yield Hit(names(*quantizers(passed), maker, norm.node), reason, norm.input)
        if quantizers(norm.crossed):
            reason = "Q/DQ inside the written-out LayerNormalization"
            yield Hit(names(*quantizers(norm.crossed), norm.node), reason, norm.input)


def _broken_attention(subject: Subject) -> Iterator[Hit]:
    """Fires: an attention with some of the Q/DQ that INT8 fusion needs, but not all; says which are missing.

    Needed: on q and k before the first BMM, after softmax, on v, and after the second BMM; one between the first BMM
    and its mask is too many. Leaves alone: all five; an attention none of whose four operands is quantized (QDQ-N301).
    """
    graph = subject.graph
    for attention in subject.patterns.attentions:
        missing = missing_quantization(graph, attention)
        scores = quantized_scores(graph, attention)
        if scores:
            reason = "not fused, Q/DQ between the first BMM and its mask"
            yield Hit(names(attention.softmax, *scores), reason, scores[0].input[0])
        if scores or not missing or is_float(missing):
            continue
        listed = "; ".join(OPERAND_NAMES[role] for role in missing)
        tensors = dict(attention.operands) | {"out": attention.bmm2.output[0]}
        hint = _late_scale(graph, tensors[missing[0]])
        kind = "fused in float, not in INT8" if fuses_in_float(missing) else "not fused"
        reason = f"{kind}, Q/DQ missing on the {listed}{hint}"
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
    """Fires: a quantized attention whose head size is not 16, 32 or 64, a single head below 64, longer than 512 tokens,
    with heads of 64 and a profile beyond 384 tokens on SM 7.5, in a BF16 body with heads below 64, or below SM 7.5.

    Leaves alone: float attention, sizes that nothing states.
    """
    platform = subject.platform
    for attention in subject.patterns.attentions:
        if is_float(missing_quantization(subject.graph, attention)):
            continue
        for problem in limit_problems(subject.graph, attention, platform.sm, platform.sequence):
            yield Hit(names(attention.softmax, attention.bmm1, attention.bmm2), problem)


def _late_scaling(subject: Subject) -> Iterator[Hit]:
    """Fires: a Mul or Div by one number between the first BMM and the softmax.

    Leaves alone: a scale on q or k in front of the BMM, or folded into the query weights; masks.
    """
    for attention in subject.patterns.attentions:
        for node in attention.scalings:
            reason = "scales the scores behind the first BMM; TensorRT's guide wants q or k scaled before it"
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
    """Fires: Q with different scales on one tensor, two or more of them in front of products.

    Leaves alone: equal scales (QDQ-P208), a Q on the dequantized tensor (QDQ-P204), a Q for the skip connection alone.
    """
    graph = subject.graph
    for tensor, scales in _scales_of(graph).items():
        nodes = [group[0] for group in scales.values() if any(_feeds_product(graph, node) for node in group)]
        if len(nodes) > 1:
            reason = f"{len(nodes)} scales on one tensor: its producer can write only one of the INT8 forms"
            yield Hit(names(*nodes), reason, tensor)


def _feeds_product(graph: LintGraph, quantize: NodeProto) -> bool:
    """Return whether a MatMul or Gemm reads what a Q's codes are dequantized to."""
    pairs = [reader for reader in graph.consumers(quantize.output[0]) if reader.op_type == DEQUANTIZE]
    return any(reader.op_type in MULTIPLICATIONS for pair in pairs for reader in graph.consumers(pair.output[0]))


RULES: tuple[Rule, ...] = (
    Rule(
        "QDQ-P202",
        "residual add with a float skip",
        "let the skip read the Q that the layer's linears share, or remove the branch's pair",
        sources.RESIDUAL,
        Verdict(
            "contradicted",
            "no kernel and no byte more or less: a branch's pair is rounded in registers",
            ("float skip",),
        ),
        _half_residual,
        {"trt11": "note", "rtx": "note"},
    ),
    Rule(
        "QDQ-P203",
        "attention whose INT8 fusion is broken",
        "place the missing pairs and none on the scores, or leave q, k, softmax and v in float, which fuses as well",
        sources.ATTENTION,
        Verdict(
            "confirmed",
            "not fused, with two kernels more; q, k or v alone leave it fused, in float",
            (
                *("attention qk", "attention av", "attention qkv", "attention qv", "no Q behind attention"),
                "quantized scores",
            ),
        ),
        _broken_attention,
    ),
    Rule(
        "QDQ-P205",
        "Q/DQ between Add and LayerNormalization",
        "quantize what the add reads and what the LayerNormalization writes, not the tensor between them",
        sources.FUSIONS,
        Verdict(
            "contradicted",
            "no kernel more: it rounds in registers, which still costs accuracy",
            ("Q before LayerNorm", "Q inside LayerNorm"),
        ),
        _blocked_norm,
        {"trt11": "note", "rtx": "note"},
    ),
    Rule(
        "QDQ-P208",
        "one tensor quantized twice",
        "let all readers share one Q (the lowering pass share_quantizers does that)",
        sources.REFIT,
        Verdict("contradicted", "no kernel more: equal Q are merged", ("second Q",)),
        _duplicates,
        {"trt11": "note", "rtx": "note"},
    ),
    Rule(
        "QDQ-P209",
        "two scales on one tensor",
        "calibrate one scale for all readers of a tensor, the largest of theirs",
        sources.PROPAGATION,
        Verdict("confirmed", "one kernel more: query, key and value are no longer one product", ("second scale",)),
        _two_scales,
    ),
    Rule(
        "QDQ-P210",
        "attention outside the limits of INT8 fusion",
        "leave q, k, softmax and v in float; with heads of a multiple of 8 the attention then fuses in FP16",
        sources.ATTENTION,
        Verdict(
            "confirmed",
            "not fused, with two to five kernels more",
            (
                *("heads of 8", "heads of 24", "heads of 48", "heads of 128", "one head of 32", "sequence 520"),
                *("profile up to 512 on SM75", "BF16 body"),
            ),
        ),
        _limits,
    ),
    Rule(
        "QDQ-P212",
        "attention scale behind the first BMM",
        "fold 1/sqrt(head size) into the query weights and bias, or multiply q in front of its Q",
        sources.SCALE_FIRST,
        Verdict("contradicted", "fused in INT8 all the same", ("late scale",)),
        _late_scaling,
        {"rtx": "note"},
    ),
)
