"""The predicted fusion map: the layers TensorRT can run as INT8 GEMM, as fused attention, or in float, with reasons."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx
from onnx import NodeProto, TensorProto

from export.inventory import MULTIPLICATIONS
from export.lint.graph import LintGraph, Operand
from export.lint.limits import FLOAT_HEAD_SIZES, MIN_SM, device_limits, int8_attention_limits
from export.lint.patterns import Attention, Linear, Patterns, Residual
from export.lint.projections import parting_problem, scaled_along_k
from export.lint.recognize import recognize
from export.names import DEQUANTIZE, QUANTIZE, one_by_one
from export.reading import label

# Code types of other products than INT8 by INT8; INT4 weights beside INT8 codes are expanded to INT8.
OTHER_CODES: Mapping[int, str] = {
    TensorProto.FLOAT8E4M3FN: "FP8",
    TensorProto.FLOAT8E5M2: "FP8",
    TensorProto.FLOAT4E2M1: "FP4",
}
OPERAND_NAMES = {
    "q": "query, before the first BMM",
    "k": "key, before the first BMM",
    "a": "probabilities, after softmax",
    "v": "value, before the second BMM",
    "out": "output, after the second BMM",
}


@dataclass(frozen=True)
class FusedLayer:
    """One layer of the engine as predicted."""

    # int8_gemm, float_gemm, int8_fused_attention, float_fused_attention, unfused (attention), residual_add, layer_norm,
    # gelu or softmax (the last two only where they are a layer of their own)
    kind: str
    name: str  # label of the ONNX node: the MatMul or Gemm, the Softmax of an attention, the op itself otherwise
    precision: str  # int8, fp16, bf16 or fp32, of the operands
    k: int | None = None  # inner size of a GEMM, whose M is batch times sequence; None: unknown
    n: int | None = None  # number of output channels of a GEMM
    heads: int | None = None  # of an attention; None elsewhere and where unknown
    head_size: int | None = None
    reason: str = ""  # why it is not INT8, or not fused; "" when it is
    layer: int | None = None  # index of the encoder layer, None outside the encoder
    role: str = ""  # query, key, value, qkv, attention_output, ffn_up, ffn_down of an encoder linear, "" elsewhere
    # What a GEMM computes on its result before writing it: bias, gelu, residual_add, quantize (INT8 out).
    epilogue: tuple[str, ...] = ()
    one_row: bool = False  # works on one token of every text, by the shapes of the graph
    narrow: bool = False  # an INT8 GEMM whose product is quantized at once, which it then writes as INT8

    @property
    def linears(self) -> int:
        """Number of the checkpoint's linears in it: three where lowering put query, key and value together."""
        return len(one_by_one(self.name))

    def as_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return asdict(self) | {"epilogue": list(self.epilogue)}


def fusion_map(model: onnx.ModelProto, sm: int = MIN_SM, sequence: int = 128) -> tuple[FusedLayer, ...]:
    """Predict the layers of an engine for compute capability `sm` (75 is 7.5) and `sequence` tokens, in graph order.

    A dimension that the graph fixes wins over `sequence`. Nothing here is measured: TensorRT decides when it builds.
    """
    graph = LintGraph(model)
    return layers_of(graph, recognize(graph), sm, sequence)


def layers_of(graph: LintGraph, patterns: Patterns, sm: int, sequence: int) -> tuple[FusedLayer, ...]:
    """Predict as `fusion_map` does, for a graph that is already indexed and recognized."""
    found: list[tuple[int, FusedLayer]] = []
    starts = sorted(graph.order[attention.bmm2.output[0]] for attention in patterns.attentions)

    def add(node: NodeProto, layer: FusedLayer, block: NodeProto | None = None) -> None:
        position = graph.order[node.output[0]]
        inside = block is not None or layer.role or layer.kind == "residual_add"
        number = _layer_number(starts, graph.order[(block or node).output[0]], layer.role) if inside else None
        found.append((position, replace(layer, layer=number, one_row=_one_row(graph, node, layer))))

    # The blocks first: linears, which may take GELUs in, attentions, and the adds and norms between them.
    in_epilogue: set[str] = set()
    for linear in patterns.linears:
        gemm, absorbed = _gemm(graph, patterns, linear)
        in_epilogue |= absorbed
        add(linear.node, gemm)
    for attention in patterns.attentions:
        add(attention.softmax, attention_layer(graph, attention, sm, sequence), attention.bmm2)
    for residual in patterns.residuals:
        add(residual.node, _residual(graph, residual))
    for norm in patterns.norms:
        add(norm.node, FusedLayer("layer_norm", label(norm.node), graph.float_type(norm.input)))
    # Then the activations and softmaxes that no block above has taken in, each a layer of its own.
    for gelu in patterns.gelus:
        if gelu.node.output[0] not in in_epilogue:
            add(gelu.node, FusedLayer("gelu", label(gelu.node), graph.float_type(gelu.input)))
    softmaxes = {attention.softmax.output[0] for attention in patterns.attentions}
    for node in graph.nodes:
        if node.op_type == "Softmax" and node.output[0] not in softmaxes:
            add(node, FusedLayer("softmax", label(node), graph.float_type(node.input[0])))
    return tuple(layer for _, layer in sorted(found, key=lambda item: item[0]))


def _one_row(graph: LintGraph, node: NodeProto, layer: FusedLayer) -> bool:
    """Return whether a layer stands behind the choice of one token: its result is [B,1,H] or [B,heads,1,S].

    So does a head's linear whose result is [B,H]; one of the encoder may have that shape because it is flattened.
    """
    shape = graph.shapes.get(node.output[0], ())
    if len(shape) > 2:
        return shape[-2] == 1
    return len(shape) == 2 and layer.kind.endswith("gemm") and not layer.role


def _layer_number(starts: list[int], position: int, role: str) -> int | None:
    """Encoder layer of a node: projections belong to the next attention, the rest to the one before."""
    if not starts:
        return None
    before = bisect.bisect_right(starts, position)
    return before if role in ("query", "key", "value", "qkv") else max(before - 1, 0)


def gemm_problem(graph: LintGraph, linear: Linear) -> str:
    """Return the reason why a linear cannot be one INT8 GEMM; "" when it can."""
    activation, weight = (graph.operand(linear.node.input[i]) for i in (1 - linear.weight, linear.weight))
    if not activation.quantized and not weight.quantized:
        return "neither input nor weight is quantized"
    if not activation.quantized:
        return "its input is float, only the weight is quantized"
    if not weight.quantized:
        return "its weight is float, only the input is quantized"
    along_k = "its weight is scaled along the axis that the product sums over" if scaled_along_k(graph, linear) else ""
    return _code_problem(graph, (activation, weight)) or along_k or parting_problem(graph, linear)


def _code_problem(graph: LintGraph, operands: Iterable[Operand]) -> str:
    """Return why quantized operands are none of INT8: codes that are FP8 or FP4; "" when they are INT8."""
    for operand in operands:
        kind = OTHER_CODES.get(graph.types.get(operand.dequantize.input[0], 0)) if operand.dequantize else None
        if kind is not None:
            return f"its codes are {kind}"
    return ""


def _gemm(graph: LintGraph, patterns: Patterns, linear: Linear) -> tuple[FusedLayer, set[str]]:
    """The layer of a linear, and the first outputs of the GELU nodes it takes in."""
    problem = gemm_problem(graph, linear)
    epilogue, absorbed = _epilogue(graph, patterns, linear)
    layer = FusedLayer(
        kind="float_gemm" if problem else "int8_gemm",
        name=label(linear.node),
        precision=graph.float_type(linear.node.output[0]) if problem else "int8",
        k=linear.k,
        n=linear.n,
        reason=problem,
        role=patterns.role(linear),
        epilogue=epilogue,
        narrow=not problem and _narrow(graph, linear),
    )
    return layer, absorbed


def _narrow(graph: LintGraph, linear: Linear) -> bool:
    """Return whether a Q stands right behind a product whose weight has one scale, so that nothing is left to do."""
    readers = graph.consumers(linear.node.output[0])
    weight = graph.operand(linear.node.input[linear.weight]).dequantize
    one_scale = weight is not None and graph.size(weight.input[1]) == 1
    return one_scale and bool(readers) and all(reader.op_type == QUANTIZE for reader in readers)


def _epilogue(graph: LintGraph, patterns: Patterns, linear: Linear) -> tuple[tuple[str, ...], set[str]]:
    """Names of what a GEMM computes on its result, and the first outputs of the GELU nodes among that."""
    if linear.crossed:
        return ("quantize",), set()
    absorbed: set[str] = set()
    output = linear.output
    # In the order of the graph: bias, then GELU, or the residual add, then the Q that all readers must be.
    parts = ["bias"] if linear.bias is not None or len(linear.node.input) == 3 else []
    gelu = next((gelu for gelu in patterns.gelus if gelu.input == output and not gelu.crossed), None)
    if gelu is not None:
        parts.append("gelu")
        absorbed.add(gelu.node.output[0])
        output = gelu.output
    residual = next((r for r in patterns.residuals if r.linear is linear), None)
    if residual is not None and graph.origin(residual.node.input[residual.branch]) == output:
        parts.append("residual_add")
        output = residual.node.output[0]
    readers = graph.consumers(output)
    if readers and all(reader.op_type == QUANTIZE for reader in readers):
        parts.append("quantize")
    return tuple(parts), absorbed


def missing_quantization(graph: LintGraph, attention: Attention) -> tuple[str, ...]:
    """Return the absent ones of the five Q/DQ pairs that INT8 fused attention needs: q, k, a, v, out."""
    missing = [role for role, tensor in attention.operands if not graph.operand(tensor).quantized]
    readers = graph.consumers(attention.bmm2.output[0])
    if not readers or any(reader.op_type != QUANTIZE for reader in readers):
        missing.append("out")
    return tuple(missing)


def is_float(missing: tuple[str, ...]) -> bool:
    """Return whether an attention is left in float on purpose: none of its four operands is quantized."""
    return set("qkav") <= set(missing)


def limit_problems(graph: LintGraph, attention: Attention, sm: int, sequence: int) -> tuple[str, ...]:
    """Return every limit of the fused kernels that an INT8 attention exceeds, as a sentence each."""
    return int8_attention_limits(
        attention.head_size,
        attention.sequence or sequence,  # the graph's, if it is fixed
        sm,
        attention.sequence is not None,
        heads=attention.heads,
        body=graph.float_type(attention.bmm2.output[0]),
    )


def quantized_scores(graph: LintGraph, attention: Attention) -> tuple[NodeProto, ...]:
    """Return the Q between the first BMM and its mask: no fused kernel has room for them, as it has behind the mask."""
    found: list[NodeProto] = []
    pending = [attention.bmm1.output[0]]
    while pending:
        for reader in graph.readers(pending.pop()):
            if reader.op_type == QUANTIZE:
                found.append(reader)
            elif reader.op_type in ("Cast", "Div", "Mul") or graph.moves(reader):
                pending.append(reader.output[0])
    return tuple(found)


def fuses_in_float(missing: tuple[str, ...]) -> bool:
    """Return whether a partly quantized attention fuses as a float one: no product of it has two INT8 operands, and
    its probabilities are float.
    """
    return "a" in missing and not {"q", "k"}.isdisjoint(missing)


def attention_layer(graph: LintGraph, attention: Attention, sm: int, sequence: int) -> FusedLayer:
    """Predict the layer of one attention block, with the reasons that keep it from INT8 or from fusing at all."""
    missing = missing_quantization(graph, attention)
    queries = graph.shapes.get(attention.bmm1.input[0]) or ()
    alone = ["its query is a single row, which takes two small products and no fused kernel"]
    other = alone if len(queries) == 4 and queries[2] == 1 else []
    other += ["Q/DQ between the first BMM and its mask"] if quantized_scores(graph, attention) else []
    float_type = graph.float_type(attention.bmm2.output[0])
    layer = FusedLayer(
        "unfused", label(attention.softmax), float_type, heads=attention.heads, head_size=attention.head_size
    )
    # Left in float on purpose: it may still fuse, in half precision.
    if is_float(missing):
        problems = [*_float_limits(attention, sm, float_type), *other]
        if problems:
            return replace(layer, reason="; ".join(problems))
        return replace(layer, kind="float_fused_attention", reason="no operand of its two BMMs is quantized")
    # Quantized at least in part: INT8 fusion needs all five pairs, and sizes within the limits.
    problems = [f"no Q/DQ on the {OPERAND_NAMES[role]}" for role in missing]
    if fuses_in_float(missing) and not _float_limits(attention, sm, float_type) and not other:
        return replace(layer, kind="float_fused_attention", reason="; ".join(problems))
    problems += [*limit_problems(graph, attention, sm, sequence), *other]
    codes = _code_problem(graph, (graph.operand(tensor) for _, tensor in attention.operands))
    if codes:
        return replace(layer, reason=codes)
    if problems:
        precision = float_type if set(missing) - {"out"} else "int8"
        return replace(layer, precision=precision, reason="; ".join(problems))
    return replace(layer, kind="int8_fused_attention", precision="int8")


def _float_limits(attention: Attention, sm: int, float_type: str) -> list[str]:
    low, high = FLOAT_HEAD_SIZES
    size, problems = attention.head_size, []
    if float_type == "fp32":
        problems.append("its BMMs are FP32, fused attention takes FP16, BF16 or INT8")
    if size is not None and not (low <= size <= high and size % 8 == 0):
        problems.append(f"its head size is {size}, fused attention takes multiples of 8 from {low} to {high}")
    return [*problems, *device_limits(sm)]


def residual_quantized(graph: LintGraph, residual: Residual) -> tuple[bool, bool]:
    """Return whether the branch and the skip operand of a residual add are quantized."""
    branch = graph.operand(residual.node.input[residual.branch]).quantized
    return branch, _skip_quantizer(graph, residual) is not None


def shares_skip(graph: LintGraph, residual: Residual) -> bool:
    """Return whether the skip operand comes from the Q whose codes linears multiply: they are in memory anyway."""
    quantize = _skip_quantizer(graph, residual)
    readers = graph.readers(quantize.output[0]) if quantize is not None else ()
    values = [reader.output[0] for reader in readers if reader.op_type == DEQUANTIZE]
    return any(found.op_type in MULTIPLICATIONS for tensor in values for found in graph.consumers(tensor))


def _skip_quantizer(graph: LintGraph, residual: Residual) -> NodeProto | None:
    """The Q of the skip operand, seen through a Mul or Div by one number per channel, which undoes smoothing."""
    tensor = graph.origin(residual.node.input[residual.skip])
    maker = graph.producer(tensor)
    if maker is not None and maker.op_type in ("Div", "Mul") and len(graph.computed_inputs(maker)) == 1:
        (tensor,) = graph.computed_inputs(maker)
    found = graph.operand(tensor)
    quantize = None if found.dequantize is None else graph.producer(found.dequantize.input[0])
    return quantize if quantize is not None and quantize.op_type == QUANTIZE else None


def _residual(graph: LintGraph, residual: Residual) -> FusedLayer:
    """The layer of a residual add, INT8 when its skip operand is read as codes; the branch comes from its own linear.

    A pair of its own on either operand saves nothing: the kernel reads float and rounds in registers.
    """
    _, skip = residual_quantized(graph, residual)
    if shares_skip(graph, residual):
        return FusedLayer("residual_add", label(residual.node), "int8")
    reason = "the skip has a QuantizeLinear of its own, which no linear shares" if skip else "float operand: skip"
    return FusedLayer("residual_add", label(residual.node), graph.float_type(residual.node.output[0]), reason=reason)
