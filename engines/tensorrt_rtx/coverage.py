"""INT8 in a compiled engine: every linear and attention of the ONNX graph, as the compiler has built it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.tensorrt_rtx.graph import Attention, Graph, Linear, layer_number
from engines.tensorrt_rtx.kernels import Compiled, Gemm, Kernel
from qdq.errors import BuildError

INT8 = "int8"
CLOSE = 1e-6  # relative: one FP32 product of two scales, rounded before or after the multiplication
INT8_PRODUCT = "imma_int8"  # in the name of an instruction that multiplies INT8
WIDE = ("fp32", "int32")  # an output type that holds INT32 sums without overflow


@dataclass(frozen=True)
class Coverage:
    """Verdict for every linear and attention, by the name of its ONNX node (an attention's is its Softmax): INT8, or
    the reason why not.

    linears: of the encoder layers, all of the graph's when no node is named after a layer; outside: those of
    embeddings, pooler and head; scales_in_fp32: of every linear that is INT8, True when its sums get their scale as an
    FP32 number, before they are rounded to 16 bits.
    """

    linears: Mapping[str, str]
    attentions: Mapping[str, str]
    outside: Mapping[str, str]
    scales_in_fp32: Mapping[str, bool]

    @property
    def int8_linears(self) -> tuple[int, int]:
        """Encoder linears in INT8, of all."""
        return sum(verdict == INT8 for verdict in self.linears.values()), len(self.linears)

    @property
    def int8_attentions(self) -> tuple[int, int]:
        """Attentions in INT8, of all."""
        return sum(verdict == INT8 for verdict in self.attentions.values()), len(self.attentions)

    @property
    def fp32_scales(self) -> tuple[int, int]:
        """INT8 linears whose scale is an FP32 number, of all INT8 linears."""
        return sum(self.scales_in_fp32.values()), len(self.scales_in_fp32)


def coverage(compiled: Compiled, model: Path) -> Coverage:
    """Look up every linear and attention of `model`, the file `compiled` was made from.

    Raises BuildError when the file cannot be read as ONNX, or names two of its products alike.
    """
    graph = Graph(model)
    _check_names([linear.name for linear in graph.linears], model)
    verdicts = {linear.name: _linear(linear, compiled) for linear in graph.linears}
    anonymous = not any(layer_number(name) is not None for name in verdicts)
    inside = {name: verdict for name, verdict in verdicts.items() if anonymous or layer_number(name) is not None}
    return Coverage(
        linears=inside,
        attentions={attention.name: _attention(attention, compiled) for attention in graph.attentions},
        outside={name: verdict for name, verdict in verdicts.items() if name not in inside},
        scales_in_fp32={
            linear.name: all(_scaled(graph, linear, gemm) for gemm in _gemms(compiled, linear.name))
            for linear in graph.linears
            if verdicts[linear.name] == INT8
        },
    )


def _check_names(names: Sequence[str], model: Path) -> None:
    shared = [name for name, count in Counter(names).items() if count > 1]
    if shared:
        raise BuildError(
            f"{model}: several products are named '{shared[0]}', and the compiler's account tells nodes apart by name; "
            "give every node a name of its own"
        )


def _linear(linear: Linear, compiled: Compiled) -> str:
    """INT8 when every product of the plan that computes the node multiplies INT8 by INT8."""
    products = _gemms(compiled, linear.name)
    if not products:
        reads = next(
            ([tensor.type for tensor in kernel.inputs] for kernel in compiled.kernels if linear.name in kernel.onnx), []
        )
        return f"no matrix product, a kernel that reads {' and '.join(reads)}" if reads else "no kernel names it"
    types = list(dict.fromkeys(gemm.operands for gemm in products if gemm.operands != (INT8, INT8)))
    if not types:
        return INT8
    left, right = types[0]
    if linear.activation is None and linear.weight is None:
        return f"float in the graph: {left} x {right}"
    if linear.activation is None or linear.weight is None:
        return f"{'activation' if linear.activation is None else 'weight'} float in the graph: {left} x {right}"
    return f"quantized in the graph, but the plan multiplies {left} x {right}"


def _gemms(compiled: Compiled, node: str) -> list[Gemm]:
    return [gemm for gemm in compiled.gemms if node in gemm.onnx]


def _scaled(graph: Graph, linear: Linear, gemm: Gemm) -> bool:
    """Compare the scale in the plan with the graph's: activation times weight, over that of a Q inside the GEMM."""
    if gemm.output in WIDE:
        return True
    if linear.scale is None or gemm.alpha is None:
        return False
    results = {graph.quantizers[name] for name in gemm.onnx if name in graph.quantizers}
    expected = [linear.scale / scale for scale in results] if gemm.output == INT8 else [linear.scale]
    return any(abs(gemm.alpha - scale) <= CLOSE * scale for scale in expected)


def _attention(attention: Attention, compiled: Compiled) -> str:
    """INT8 when one fused kernel computes both products, reads q, k, v as INT8, and multiplies INT8 both times."""
    fused = [kernel for kernel in compiled.kernels if kernel.kind == "attention" and _computes(kernel, attention)]
    if not fused:
        return f"not fused: the scores go through memory{_between(attention, compiled)}"
    operands = [tensor.type for tensor in fused[0].inputs]
    if operands.count(INT8) < 3:
        return f"fused, but reads {', '.join(dict.fromkeys(operands))}"
    instructions = fused[0].instructions
    if len(instructions) == 2 and all(INT8_PRODUCT in instruction for instruction in instructions):
        return INT8
    return f"fused and reads int8, but multiplies with {' and '.join(instructions) or 'unknown instructions'}"


def _computes(kernel: Kernel, attention: Attention) -> bool:
    return attention.scores in kernel.onnx and attention.context in kernel.onnx


def _between(attention: Attention, compiled: Compiled) -> str:
    """Types of the two products of an attention that is not fused."""
    products = [_gemms(compiled, name) for name in dict.fromkeys((attention.scores, attention.context))]
    types = [" x ".join(found[0].operands) for found in products if found]
    return f", products {' and '.join(types)}" if types else ""
