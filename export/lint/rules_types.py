"""Types: those a GPU does not have, those that two operands do not share, and sums that FP16 may not hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import NodeProto, TensorProto

from export.inventory import MULTIPLICATIONS
from export.lint import sources
from export.lint.findings import Hit, Rule, Subject, Verdict, names
from export.lint.fusion import gemm_problem
from export.lint.graph import LintGraph
from export.lint.limits import FIRST_SM, RTX
from export.lint.projections import channels
from export.reading import label, type_name

NARROW: Mapping[int, str] = {
    TensorProto.BFLOAT16: "bf16",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.FLOAT8E5M2: "fp8",
    TensorProto.INT4: "int4",
}


def _absent_type(subject: Subject) -> Iterator[Hit]:
    """Fires: BF16 below SM 8.0 and FP8 below SM 8.9; for TensorRT for RTX also INT4 below SM 8.0, and products that
    are written in FP32 on SM 7.5.

    Leaves alone: the same on a GPU that has the type; FP32 products for TensorRT.
    """
    graph, platform = subject.graph, subject.platform
    found: dict[str, list[str]] = {}
    for node in graph.nodes:
        kinds = {NARROW.get(graph.types.get(tensor, 0), "") for tensor in (*node.input, *node.output)}
        for kind in kinds - {""}:
            found.setdefault(kind, []).append(label(node))
    for kind, nodes in sorted(found.items()):
        if platform.sm < FIRST_SM[kind] and (kind != "int4" or platform.target == RTX):
            first = FIRST_SM[kind] / 10
            yield Hit(
                tuple(nodes), f"{len(nodes)} nodes with {kind.upper()}, which starts at compute capability {first}"
            )
    if platform.target == RTX and platform.sm < FIRST_SM["bf16"]:
        wide = [node for node in graph.nodes if _is_product(graph, node) and graph.float_type(node.output[0]) == "fp32"]
        if wide:
            reason = f"{len(wide)} products are written in FP32: TensorRT for RTX has none such for Turing"
            yield Hit(names(*wide), reason)


def _is_product(graph: LintGraph, node: NodeProto) -> bool:
    return node.op_type in MULTIPLICATIONS and not graph.constant(node.output[0])


def _unequal_operands(subject: Subject) -> Iterator[Hit]:
    """Fires: a linear whose two DequantizeLinear nodes have scales of different types, with a Cast behind one.

    Leaves alone: one type on both sides, cast or not; a product that reads two types (QDQ-E125); attention.
    """
    graph = subject.graph
    for linear in subject.patterns.linears:
        found = [graph.operand(tensor).dequantize for tensor in linear.node.input[:2]]
        pairs = [node for node in found if node is not None]
        kinds = [type_name(graph.types.get(node.input[1], TensorProto.UNDEFINED)) for node in pairs]
        if len(set(kinds)) == 2 and graph.types.get(linear.node.input[0]) == graph.types.get(linear.node.input[1]):
            yield Hit(names(linear.node, *pairs), f"its operands have scales of type {kinds[0]} and {kinds[1]}")


def _half_sums(subject: Subject) -> Iterator[Hit]:
    """Fires: INT8 linears with one weight scale per output channel and an FP16 result.

    The scales are then applied behind the product, which writes its INT32 sums as FP16: above 65504, which real text
    reaches, they are infinite or saturated, and the scale itself becomes a subnormal FP16 number. Leaves alone: one
    scale per weight, with the channels' ratios as a Mul behind the product or not; FP32 scales; FP32 and BF16 results.
    """
    graph = subject.graph
    found = []
    for linear in subject.patterns.linears:
        weight = graph.operand(linear.node.input[linear.weight]).dequantize
        if weight is None or channels(graph, weight) == 1 or gemm_problem(graph, linear):
            continue
        if graph.float_type(weight.output[0]) == graph.float_type(linear.node.output[0]) == "fp16":
            found.append(linear.node)
    if found:
        reason = f"{len(found)} INT8 products write their INT32 sums as FP16, before the channels' scales are applied"
        yield Hit(names(*found), reason)


ERRORS: tuple[Rule, ...] = (
    Rule(
        "QDQ-E131",
        "type that the GPU does not have",
        "write the body in FP16 and quantize to INT8, or build for a newer GPU",
        sources.SUPPORT,
        Verdict(
            "confirmed",
            'refused: "HW-specific datatypes", "FP32 GEMM is not supported" for Turing',
            ("BF16 on SM75", "FP8 on SM80", "INT4 on SM75", "FP32 on SM75"),
        ),
        _absent_type,
    ),
    Rule(
        "QDQ-E132",
        "operands with scales of two types",
        "give both scales one type: FP16 in an FP16 graph",
        sources.COMPILED,
        Verdict(
            "confirmed",
            'refused by the graph compiler: "type mismatch between matmul operand scales"',
            ("cast behind the input", "cast behind the weight"),
        ),
        _unequal_operands,
    ),
)

# Its own grade, because it is neither refused nor slow: whether the engine's answers are the file's.
ACCURACY: tuple[Rule, ...] = (
    Rule(
        "QDQ-A401",
        "INT8 sums written as FP16",
        "use one scale per weight tensor and multiply by the channels' ratios behind the product (qdq compile does)",
        sources.COMPILED,
        Verdict("confirmed", "the product's factor is 1.0, the scales are in the next kernel", ("FP16 body",)),
        _half_sums,
        {"trt10": "note"},
    ),
)
