"""Pass: INT8 codes for the products of linears, directly behind the MatMul and before its ratio and bias.

An INT8 product of TensorRT's compiler writes codes itself when the QuantizeLinear stands directly behind it and has one
scale: half of an FP16 result's bytes, written and read again. The ratios and the bias, which otherwise bind it to a
float result, become part of the next kernel (seen in the plans of TensorRT for RTX 1.7.1: as many kernels as before).

Codes for query, key, value and for what attention returns are the rule: they cost no accuracy that could be measured.
Those of the feed-forward part, whose products have the outliers, double the error of the answers and are the
exception; docs/tensorrt.md has both in figures.

One range for all channels must not be set by a few large ones, and these must not be clipped, for they are what a model
relies on: a large channel's ratio is doubled, and the codes of its weights halved, until its product fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from export.names import CODES, DEQUANTIZE, PAIR, QUANTIZE, SCALE, ZERO_POINT, in_encoder, one_by_one
from export.passes.base import Declined, PassResult
from export.passes.quantized_linears import QuantizedLinear, quantized_linear
from export.products import Product

LARGEST_CODE = 127
LARGEST_ERROR = 0.05  # root mean square of what codes change over that of the product
LARGEST_ROUNDING = 0.01  # of that scale to its type; BF16 has a third of it everywhere
RANGES = np.geomspace(1 / 16, 1, 33)  # shares of the largest channel's range that are tried
# Operators between a linear and an attention product.
BETWEEN = frozenset({"Add", "Div", "Gather", "Mul", "Reshape", "Slice", "Split", "Squeeze", "Transpose", *PAIR})
ROUNDING = 1 / 12  # mean square of a rounding by at most half a step


def quantized_products(
    graph: gs.Graph, products: Mapping[str, Product] | None, feed_forward: bool = False
) -> PassResult:
    """Give the product of every linear beside attention codes of its own, with `feed_forward` of every encoder linear.

    Before: ``DQ(x) -> MatMul(DQ(codes, scale [])) -> Mul(ratio [N]) -> Add(bias)``. After: ``… MatMul -> Q -> DQ ->
    Mul(ratio [N]) -> Add(bias)``, where weights and ratio of a channel with large products are other ones. The range is
    the one with the least squared error, of rounding products to it and of rounding weights again, as measured on the
    calibration text (`export.products`).
    Leaves alone: everything when `products` is None; linears that no attention reads and that read none, unless asked;
    float linears, weights with a scale per channel (`weight_ratios`
    gives them one), products that have codes already. Declined are products that were not measured and those that would
    change by more than `LARGEST_ERROR` of their size.
    """
    changed: list[str] = []
    declined: list[Declined] = []
    beside = None if feed_forward else _beside_attention(graph)
    for group in _groups(graph) if products is not None else ():
        if beside is not None and id(group[0].node) not in beside:
            continue
        found = _measured(group, products or {})
        codes = found if isinstance(found, str) else _choose(found)
        if isinstance(codes, str):
            declined.extend(Declined(linear.node.name, codes) for linear in group)
            continue
        _recode(group, codes.factors)
        for linear in group:
            _quantize(graph, linear.node, codes.scale)
            changed.append(linear.node.name)
    return PassResult(tuple(changed), tuple(declined))


@dataclass(frozen=True)
class Scaled:
    """Products in units of their weights' scales, so that one range means the same for every channel."""

    largest: NDArray[np.float64]  # [N]
    scales: NDArray[np.float64]  # [N], of the weights: ratio times scale
    energy: float  # sum of the channels' mean squares
    input: float  # mean squared norm of the input
    scale: NDArray[np.floating]  # [], of the weights, in the graph's type
    adjustable: bool  # a ratio stands behind the product


@dataclass(frozen=True)
class Codes:
    """The scale of a product's codes, and the power of two by which each channel's ratio grows."""

    scale: NDArray[np.floating]
    factors: NDArray[np.float64]  # [N]


def _groups(graph: gs.Graph) -> Iterator[list[QuantizedLinear]]:
    """Linears of the encoder whose products can get codes, by weight: ALBERT's layers read one."""
    groups: dict[int, list[QuantizedLinear]] = {}
    for node in graph.nodes:
        linear = quantized_linear(node) if node.op == "MatMul" and in_encoder(node.name) else None
        if linear is None or linear.input_scale is None or linear.scales.ndim:
            continue
        if all(reader.op != QUANTIZE for reader in node.outputs[0].outputs):
            groups.setdefault(id(linear.weight), []).append(linear)
    yield from groups.values()


def _beside_attention(graph: gs.Graph) -> set[int]:
    """Ids of the linears whose products attention multiplies, and of those that read its result.

    The walk starts at every product of two computed tensors, in both directions, and goes on through what only moves,
    scales, adds or quantizes values.
    """
    linears = {id(node) for node in graph.nodes if quantized_linear(node) is not None}
    products = [node for node in graph.nodes if node.op == "MatMul" and not _has_weights(node)]
    found: set[int] = set()
    for product in products:
        for step in (_makers, _readers):
            waiting, seen = step(product), set[int]()
            while waiting:
                node = waiting.pop()
                if id(node) in linears:
                    found.add(id(node))
                elif node.op in BETWEEN and id(node) not in seen:
                    seen.add(id(node))
                    waiting.extend(step(node))
    return found


def _has_weights(node: gs.Node) -> bool:
    """True when the second factor is constant, stored as numbers or as codes."""
    maker = node.inputs[1].inputs[0] if node.inputs[1].inputs else None
    weights = node.inputs[1] if maker is None or maker.op != DEQUANTIZE else maker.inputs[0]
    return isinstance(weights, gs.Constant)


def _makers(node: gs.Node) -> list[gs.Node]:
    return [maker for tensor in node.inputs for maker in tensor.inputs]


def _readers(node: gs.Node) -> list[gs.Node]:
    return [reader for tensor in node.outputs for reader in tensor.outputs]


def _measured(group: Sequence[QuantizedLinear], products: Mapping[str, Product]) -> Scaled | str:
    """The products of linears with one weight, or why they are not known."""
    found = [[products.get(part) for part in one_by_one(linear.node.name)] for linear in group]
    known = [[part for part in parts if part is not None] for parts in found]
    if any(len(parts) < len(all_parts) for parts, all_parts in zip(known, found, strict=True)):
        return "its product was not measured"
    ratio = _ratio(group[0].node)
    scale = group[0].scales
    scales = np.broadcast_to(
        scale.astype(np.float64) * (1.0 if ratio is None else ratio.values), group[0].codes.shape[1:]
    )
    largest = np.max([np.concatenate([part.largest for part in parts]) for parts in known], axis=0)
    energy = np.mean([sum(part.energy.sum() for part in parts) for parts in known])
    norm = np.mean([parts[0].input for parts in known])
    return Scaled(largest / scales, scales.astype(np.float64), float(energy), float(norm), scale, ratio is not None)


def _ratio(node: gs.Node) -> gs.Constant | None:
    """The ratios behind a product; None when its readers are other ones."""
    readers = node.outputs[0].outputs
    if len(readers) != 1 or readers[0].op != "Mul":
        return None
    return next((tensor for tensor in readers[0].inputs if isinstance(tensor, gs.Constant)), None)


def _choose(product: Scaled) -> Codes | str:
    """The range with the least squared error, or why codes would not do."""
    most = float(product.largest.max())
    if not most:
        return "its product is zero"
    ranges = most * RANGES if product.adjustable else np.array([most])
    errors = [_squared_error(product, top) for top in ranges]
    top = float(ranges[int(np.argmin(errors))])
    error = float(np.sqrt(min(errors) / product.energy))
    if error > LARGEST_ERROR:
        return f"INT8 codes would change its product by {error:.1%}; up to {LARGEST_ERROR:.0%} is let pass"
    exact = top / LARGEST_CODE * float(product.scale)
    scale = np.asarray(exact, product.scale.dtype)
    if not abs(float(scale) / exact - 1) <= LARGEST_ROUNDING:
        return f"the scale of its codes, {exact:.3g}, has no near {scale.dtype} value"
    return Codes(scale, _factors(product, top))


def _factors(product: Scaled, top: float) -> NDArray[np.float64]:
    """The power of two that brings each channel's product below `top`."""
    return np.exp2(np.ceil(np.log2(np.maximum(product.largest / top, 1.0))))


def _squared_error(product: Scaled, top: float) -> float:
    """Mean squared error of all channels when the codes reach up to `top`."""
    factors = _factors(product, top)
    squares = factors**2
    products = squares * (top / LARGEST_CODE) ** 2
    weights = np.where(factors > 1, squares + 2, 0) * product.input  # of codes that are integers before, too
    return float(np.sum(product.scales**2 * (products + weights)) * ROUNDING)


def _quantize(graph: gs.Graph, node: gs.Node, scale: NDArray[np.floating]) -> None:
    """Put the pair between a product and its readers."""
    stem, _, step = node.name.rpartition(".")
    name = f"{stem}.product_quantizer{step.removeprefix('MatMul')}"
    result = node.outputs[0]
    constants = [gs.Constant(name + SCALE, scale), gs.Constant(name + ZERO_POINT, np.zeros((), np.int8))]
    codes = gs.Variable(f"{name}.quantize", dtype=np.dtype(np.int8))
    values = gs.Variable(f"{name}.dequantize", dtype=scale.dtype)
    for reader in list(result.outputs):
        reader.inputs = [values if tensor is result else tensor for tensor in reader.inputs]
    graph.nodes.append(gs.Node(QUANTIZE, codes.name, {}, [result, *constants], [codes]))
    graph.nodes.append(gs.Node(DEQUANTIZE, values.name, {}, [codes, *constants], [values]))


def _recode(group: Sequence[QuantizedLinear], factors: NDArray[np.float64]) -> None:
    """Divide the weights' codes by `factors` and multiply the ratios by them."""
    if (factors == 1).all():
        return
    weight = group[0].weight
    codes = np.rint(group[0].codes / factors).astype(np.int8)
    weight.inputs[0] = gs.Constant(f"{weight.name.removesuffix('.dequantize')}{CODES}", codes)
    grown: dict[int, gs.Constant] = {}
    for linear in group:
        ratio, (multiply,) = _ratio(linear.node), linear.node.outputs[0].outputs
        if ratio is not None:
            values = np.asarray(ratio.values * factors, ratio.values.dtype)
            new = grown.setdefault(id(ratio), gs.Constant(ratio.name, values))
            multiply.inputs = [new if tensor is ratio else tensor for tensor in multiply.inputs]
