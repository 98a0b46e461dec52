"""Pass: one scale per weight tensor, and the ratios of its channels to it in a multiplication behind the product.

TensorRT's compiler multiplies the INT32 sums of an INT8 product by one FP32 number, input scale times weight scale. A
scale per channel does not fit into it: then the product writes its raw sums as FP16, which ends at 65504, and the
kernel behind it multiplies by an FP16 constant of about 1e-5, which is subnormal (seen in the plans of TensorRT for RTX
1.7.1, compiled for SM75 to SM120). With one scale the sums leave the product as what they stand for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from export.names import SCALE, ZERO_POINT
from export.passes.base import Declined, PassResult
from export.passes.quantized_linears import QuantizedLinear, quantized_linear

LARGEST_CODE = 128  # of an INT8 input, in magnitude


def weight_ratios(graph: gs.Graph) -> PassResult:
    """Give every weight tensor one scale.

    Before: ``DQ(x) -> MatMul(DQ(codes, scale [N])) -> y``. After: ``DQ(x) -> MatMul(DQ(codes, scale [])) -> Mul(ratio
    [N]) -> y`` with the same codes, and the old scales are ``scale * ratio``. Linears that read one tensor get one
    scale, or the compiler could not compute them together. A Gemm becomes a MatMul, with its bias behind the ratios.
    The scale is a power of two and at most 1, so that every ratio is exact: the largest scale rounded up, or less where
    the sums of the largest codes would leave the float type. A channel of zeros has the ratio 1.
    Leaves alone: weights with one scale already, linears with a float input or weight. Sums of a changed linear that
    could overflow all the same are listed as declined.
    """
    changed: list[str] = []
    declined: list[Declined] = []
    linears = [linear for node in graph.nodes if (linear := quantized_linear(node)) is not None]
    for group in _groups([linear for linear in linears if linear.input_scale is not None]):
        if len({linear.scales.tobytes() for linear in group}) == 1 and group[0].scales.ndim == 0:
            continue
        scale = common_scale([Range.of(linear) for linear in group])
        ratios: dict[int, gs.Constant] = {}  # by weight: ALBERT's layers read one
        for linear in group:
            declined.extend(_overflow(linear, scale))
            if id(linear.weight) not in ratios:
                ratios[id(linear.weight)] = _with_one_scale(linear, scale)
            _multiply_behind(graph, linear.node, ratios[id(linear.weight)])
            changed.append(linear.node.name)
    return PassResult(tuple(changed), tuple(declined))


def _groups(linears: Sequence[QuantizedLinear]) -> list[list[QuantizedLinear]]:
    """Linears that must have one scale, because they read one tensor or one weight, directly or by way of others."""
    groups: list[tuple[set[int], list[QuantizedLinear]]] = []
    for linear in linears:
        read = {id(linear.input), id(linear.weight)}
        touching = [group for group in groups if not read.isdisjoint(group[0])]
        groups = [group for group in groups if read.isdisjoint(group[0])]
        merged = [other for _, members in touching for other in members]
        groups.append((read.union(*(keys for keys, _ in touching)), [*merged, linear]))
    return [members for _, members in groups]


@dataclass(frozen=True)
class Range:
    """Bounds of the scale of one linear's weights."""

    largest: float  # scale of a channel that is not all zeros
    step: float  # scale of the input
    sum: int  # largest sum of |code| over the K weights of a channel
    dtype: np.dtype[Any]  # of the product

    @classmethod
    def of(cls, linear: QuantizedLinear) -> Range:
        """Measure a linear whose input has a scale."""
        assert linear.input_scale is not None
        sums = np.abs(linear.codes.astype(np.int64)).sum(axis=0)
        live = np.broadcast_to(linear.scales.astype(np.float64), sums.shape)[sums > 0]
        largest = float(live.max()) if live.size else 1.0
        return cls(largest, linear.input_scale, int(sums.max(initial=1)), linear.scales.dtype)

    def sums(self, scale: float) -> float:
        """Largest magnitude that a product with weights of `scale` can reach."""
        return LARGEST_CODE * self.step * self.sum * scale


def common_scale(ranges: Sequence[Range]) -> float:
    """The power of two that serves all of `ranges`: the largest scale rounded up, at most 1, where the sums allow it.

    FP16 values are multiples of 2**-24, so that divided by a power of two up to 1 they are FP16 values again, as long
    as the result is finite; where that and sums that fit exclude each other, it is finite.
    """
    limits = [(item, _limits(item.dtype)) for item in ranges]
    largest = min(1.0, max(_up(item.largest) for item in ranges))
    fitting = min(_down(float(kind.max) / max(1.0, item.sums(1.0))) for item, kind in limits)
    finite = max(_up(item.largest / float(kind.max)) for item, kind in limits)
    return max(min(largest, fitting), finite, *(float(kind.smallest_subnormal) for _, kind in limits))


def _limits(dtype: np.dtype[Any]) -> np.finfo[Any]:
    """Range of a float type; BF16 has that of FP32."""
    return np.finfo(np.float16 if dtype == np.float16 else np.float32)


def _up(value: float) -> float:
    """The power of two at or above `value`."""
    return math.ldexp(1.0, math.ceil(math.log2(value)))


def _down(value: float) -> float:
    """The power of two at or below `value`."""
    return math.ldexp(1.0, math.floor(math.log2(value)))


def _overflow(linear: QuantizedLinear, scale: float) -> Iterator[Declined]:
    """Say where the largest codes would make a sum that the product's type does not hold."""
    reach, most = Range.of(linear).sums(scale), float(_limits(linear.scales.dtype).max)
    if reach > most:
        yield Declined(linear.node.name, f"its sums could reach {reach:.4g} before the ratio, of at most {most:.6g}")


def _with_one_scale(linear: QuantizedLinear, scale: float) -> gs.Constant:
    """Give the weight one scale; returns the ratios [N]."""
    weight, codes, dtype = linear.weight, linear.codes, linear.scales.dtype
    stem = weight.inputs[1].name.removesuffix(SCALE)
    scales = np.broadcast_to(linear.scales.astype(np.float64), codes.shape[1:])
    ratio = gs.Constant(f"{stem}.ratio", np.where(codes.any(axis=0), scales / scale, 1.0).astype(dtype))
    one = gs.Constant(stem + SCALE, np.asarray(scale, dtype))
    weight.inputs = [weight.inputs[0], one, gs.Constant(stem + ZERO_POINT, np.zeros((), np.int8))]
    weight.attrs.pop("axis", None)
    return ratio


def _multiply_behind(graph: gs.Graph, node: gs.Node, ratio: gs.Constant) -> None:
    """Multiply a product by the ratios; what reads it, and its name, stay."""
    stem, _, step = node.name.rpartition(".")
    number = step.removeprefix(node.op)  # "_1" in the second call of a module
    result = node.outputs[0]
    sums = gs.Variable(f"{node.name}.sums", dtype=result.dtype)
    steps = [gs.Node("Mul", f"{stem}.Ratio{number}", {}, [sums, ratio])]
    if node.op == "Gemm" and len(node.inputs) == 3:
        steps.append(gs.Node("Add", f"{stem}.Add{number}", {}, [node.inputs.pop()]))
        steps[0].outputs = [gs.Variable(steps[0].name, dtype=result.dtype)]
        steps[1].inputs.insert(0, steps[0].outputs[0])
    node.op, node.attrs = "MatMul", {}
    node.outputs, steps[-1].outputs = [sums], [result]
    graph.nodes.extend(steps)
