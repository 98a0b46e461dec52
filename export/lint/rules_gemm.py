"""Performance of linears: products that stay in float, casts and Q/DQ pairs in their way, sizes too small."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto

from export.inventory import MULTIPLICATIONS
from export.lint import sources
from export.lint.findings import Hit, Rule, Subject, Verdict, names
from export.lint.limits import MIN_GEMM
from export.lint.patterns import before, quantizers
from export.lint.projections import parting_problem, unequal_projections


def _half_quantized(subject: Subject) -> Iterator[Hit]:
    """Fires: a linear of which exactly one of input and weight is quantized.

    Leaves alone: both (INT8), none (float by choice, QDQ-N303), attention products (QDQ-P203).
    """
    graph = subject.graph
    for linear in subject.patterns.linears:
        activation, weight = (graph.operand(linear.node.input[i]) for i in (1 - linear.weight, linear.weight))
        if activation.quantized == weight.quantized:
            continue
        which, other = ("weight", "input") if weight.quantized else ("input", "weight")
        tensor = linear.node.input[1 - linear.weight if weight.quantized else linear.weight]
        reason = f"its {which} is quantized, its {other} is float: it runs as a float GEMM behind a DequantizeLinear"
        yield Hit(names(linear.node), reason, tensor)


def _blocked_epilogue(subject: Subject) -> Iterator[Hit]:
    """Fires: Q/DQ between a product and its bias, between the bias and GELU, or inside a GELU chain.

    Leaves alone: Q/DQ in front of the product and behind the GELU.
    """
    graph, patterns = subject.graph, subject.patterns
    for linear in patterns.linears:
        if quantizers(linear.crossed) and linear.bias is not None:
            reason = "Q/DQ between the product and its bias: the bias becomes a kernel of its own"
            yield Hit(names(*quantizers(linear.crossed), linear.node, linear.bias), reason)
    ends = {linear.output for linear in patterns.linears}
    for gelu in patterns.gelus:
        maker, passed = before(graph, gelu.input)
        if quantizers(passed) and maker is not None and maker.output[0] in ends:
            reason = "Q/DQ between the linear and its GELU: the product cannot take the GELU into its epilogue"
            yield Hit(names(*quantizers(passed), gelu.node), reason, gelu.input)
        if quantizers(gelu.crossed):
            reason = "Q/DQ inside the GELU chain: the pattern is not recognized and every op runs by itself"
            yield Hit(names(*quantizers(gelu.crossed), gelu.node), reason, gelu.input)


def _casts(subject: Subject) -> Iterator[Hit]:
    """Fires: a Cast to another type between a DequantizeLinear and a product.

    Leaves alone: casts to the type at hand, casts in front of a Q, casts of float operands.
    """
    graph = subject.graph
    for node in graph.nodes:
        if node.op_type not in MULTIPLICATIONS:
            continue
        for tensor in node.input[:2]:
            operand = graph.operand(tensor)
            if operand.dequantize is not None and operand.casts:
                kinds = [graph.float_type(tensor) for tensor in (operand.dequantize.output[0], node.input[0])]
                reason = f"cast from {kinds[0]} to {kinds[1]} between DequantizeLinear and product"
                yield Hit(names(*operand.casts, operand.dequantize, node), reason, tensor)


def _small(subject: Subject) -> Iterator[Hit]:
    """Fires: a quantized linear whose K (inner size) or N (outputs) is below 16.

    Leaves alone: float linears, sizes that nothing states.
    """
    for linear in subject.patterns.linears:
        quantized = all(subject.graph.operand(tensor).quantized for tensor in linear.node.input[:2])
        sizes = {"K": linear.k, "N": linear.n}
        small = [f"{name} is {size}" for name, size in sizes.items() if size is not None and size < MIN_GEMM]
        if quantized and small:
            yield Hit(names(linear.node), f"{' and '.join(small)}: below {MIN_GEMM}, INT8 only adds conversions")


def _unfused_quantize(subject: Subject) -> Iterator[Hit]:
    """Fires: a Q behind a float product (linear, BMM outside attention, Conv) or a DQ of another scale.

    Such a Q is a kernel of its own. Leaves alone: a Q behind an INT8 product, a graph input, pointwise ops,
    LayerNormalization and softmax, whose kernels write INT8; a Q behind a half-quantized product or inside attention,
    which QDQ-P201, QDQ-P203 and QDQ-N301 name; weights.
    """
    graph = subject.graph
    bmm2 = {attention.bmm2.output[0] for attention in subject.patterns.attentions}
    products = {linear.bias.output[0]: linear.node for linear in subject.patterns.linears if linear.bias is not None}
    for node in quantizers(graph.nodes):
        if graph.constant(node.input[0]):
            continue
        origin = graph.origin(node.input[0])
        if origin in bmm2:
            continue
        maker = products.get(origin) or graph.producer(origin)
        reason = "" if maker is None else _unfused_reason(subject, node, maker)
        if maker is not None and reason:
            yield Hit(names(node, maker), f"{reason}: this Q is a kernel of its own", node.input[0])


def _unfused_reason(subject: Subject, node: NodeProto, maker: NodeProto) -> str:
    """Return the reason why no kernel in front can write the codes of a Q; "" when one can."""
    graph = subject.graph
    if maker.op_type == "DequantizeLinear":
        same = _same_scale(subject, maker.input[1], node.input[1])
        return "" if same else "it requantizes, with another scale, what a DequantizeLinear has just made"
    if maker.op_type not in (*MULTIPLICATIONS, "Conv", "ConvTranspose"):
        return ""
    if any(graph.operand(tensor).quantized for tensor in maker.input[:2]):
        return ""
    return "the product in front of it runs in float and writes float"


def _same_scale(subject: Subject, one: str, other: str) -> bool:
    """Return whether two scales are equal; scales without a value are compared by name."""
    first, second = subject.graph.value(one), subject.graph.value(other)
    if first is None or second is None:
        return one == other
    return bool((first.reshape(-1) == second.reshape(-1)).all()) if first.size == second.size else False


def _taken_apart(subject: Subject) -> Iterator[Hit]:
    """Fires: a linear with Q/DQ and a scale per channel whose result Split or Slice take apart, or Gathers into float.

    Leaves alone: one scale per weight, with the channels' ratios behind the product or not; Gathers of which a part is
    quantized; a Q in front of the parting.
    """
    graph = subject.graph
    for linear in subject.patterns.linears:
        if all(graph.operand(tensor).quantized for tensor in linear.node.input[:2]):
            problem = parting_problem(graph, linear)
            if problem:
                yield Hit(names(linear.node), f"{problem}: it runs as a float GEMM", linear.output)


def _unequal(subject: Subject) -> Iterator[Hit]:
    """Fires: query, key and value linears of one tensor with different weight scales, or per tensor beside per channel.

    Leaves alone: a scale per channel in all of them, one and the same scale, linears of several tensors.
    """
    for linears in unequal_projections(subject.graph, subject.patterns):
        reason = "query, key and value have weight scales of their own: three products instead of one"
        yield Hit(names(*(linear.node for linear in linears)), reason)


RULES: tuple[Rule, ...] = (
    Rule(
        "QDQ-P201",
        "linear with one quantized operand",
        "quantize both operands, or neither: remove the Q/DQ pair it has",
        sources.PLACEMENT,
        Verdict("confirmed", "this linear in float, with one kernel more", ("float weight", "float input")),
        _half_quantized,
    ),
    Rule(
        "QDQ-P204",
        "QuantizeLinear that cannot fuse with its producer",
        "quantize the product in front as well, or remove this pair",
        sources.PROPAGATION,
        Verdict("confirmed", "one kernel more", ("Q behind a float linear", "requantized")),
        _unfused_quantize,
    ),
    Rule(
        "QDQ-P206",
        "Q/DQ inside MatMul, bias, GELU",
        "quantize the linear's input and the GELU's output, nothing between",
        sources.FUSIONS,
        Verdict(
            "contradicted",
            "no kernel more: it rounds in registers, which still costs accuracy",
            ("Q before the bias", "Q before GELU", "Q inside GELU"),
        ),
        _blocked_epilogue,
        {"trt11": "note", "rtx": "note"},
    ),
    Rule(
        "QDQ-P207",
        "cast between DequantizeLinear and product",
        "store FP16 scales (opset 19 or later) so that the DequantizeLinear makes the type the product takes",
        sources.MODELOPT_CASTS,
        Verdict(
            "contradicted",
            "no kernel more with a cast on both sides; on one side it is refused (QDQ-E132)",
            ("casts behind both", "casts in attention"),
        ),
        _casts,
        {"trt11": "note", "rtx": "note"},
    ),
    Rule(
        "QDQ-P211",
        "quantized linear with K or N below 16",
        "leave this linear in float",
        sources.MODELOPT_SIZE,
        Verdict("confirmed", "one kernel more: the Q in front", ("quantized classifier",)),
        _small,
    ),
    Rule(
        "QDQ-P213",
        "merged linear that is taken apart",
        "use one scale per weight and the channels' ratios behind the product, or gather from [0, 0, 3, heads, size]",
        sources.COMPILED,
        Verdict("confirmed", "this linear in float", ("Split", "merged, float attention")),
        _taken_apart,
    ),
    Rule(
        "QDQ-P214",
        "q, k and v that cannot be one product",
        "give the weights of query, key and value one scale, or one per channel each",
        sources.COMPILED,
        Verdict("confirmed", "one or more kernels more", ("query with a scale of its own", "query per tensor")),
        _unequal,
    ),
)
