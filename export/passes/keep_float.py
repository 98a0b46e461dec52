"""The nodes that stay FP32 in a half-precision graph and the constants to clamp, each with its reason.

Nothing here changes the graph. A measured tensor keeps FP32 when it comes within a factor of two of the largest half
value (other text than the calibration's may go higher), or when every one of its values would be subnormal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from export.inventory import LAYOUT
from export.names import DEQUANTIZE, PAIR
from export.passes.element_types import MOVING, Half, Types, allowed_types, formals, schema_of
from export.reading import FLOATS

CAST = "Cast"

# TensorRT's parser writes these out, and then their squares are tensors that overflow from 256 on.
SQUARES = frozenset({"ReduceL2", "ReduceLogSumExp", "ReduceSumSquare"})

MASKING = ("Add", "Mul", "Where")  # how a negative constant erases attention scores
LARGEST_CODE = 128  # of INT8, in magnitude


@dataclass
class Kept:
    """The nodes that stay FP32 and the constants to clamp, by name, each with its reason; and what was not measured."""

    nodes: dict[str, str] = field(default_factory=dict)
    clamped: dict[str, str] = field(default_factory=dict)
    unmeasured: tuple[str, ...] = ()


def kept_in_fp32(graph: gs.Graph, types: Types, half: Half, ranges: Mapping[str, float] | None) -> Kept:
    """Find the nodes of `graph` that stay FP32 and the constants to clamp.

    `types` are the graph's element types, `ranges` as `export.ranges.measure_ranges` returns them.
    """
    kept = Kept()
    needs: dict[str, str] = {}  # tensor name -> why half precision cannot hold it
    # By operator and by constant: Cast, Q and DQ take whatever type their neighbours have.
    for node in graph.nodes:
        if node.op in (CAST, *PAIR):
            continue
        _by_operator(node, graph.opset, types, half, kept)
        for constant in _float_constants(node):
            _by_constant(node, constant, half, kept, needs)
    # By range: what a DQ can reach at most, then what was measured.
    for node in graph.nodes:
        for scale in _float_constants(node) if node.op == DEQUANTIZE else ():
            bound = LARGEST_CODE * float(scale.values.max())
            if bound > half.limit:
                needs[node.outputs[0].name] = f"dequantizes to as much as {bound:.4g}; {half.holds}"
    floats = [node.outputs[0].name for node in graph.nodes if types[node.outputs[0].name] in FLOATS]
    if ranges is not None:
        explained = _explained_by_masks(graph, kept.clamped, ranges)
        measured = {name: ranges[name] for name in floats if name in ranges and name not in explained}
        needs.update((name, why) for name, largest in measured.items() if (why := _misfit(largest, half)))
    # What only moves values is as large as what it moves.
    computed = {node.outputs[0].name for node in graph.nodes if node.op not in (CAST, *PAIR, *MOVING)}
    kept.unmeasured = tuple(name for name in floats if name in computed and name not in (ranges or {}))
    # From tensors to the nodes that make or read them.
    _by_tensor(graph, needs, kept)
    _by_integer_result(graph, types, half, kept)
    _back_to_dequantizers(graph, kept)
    return kept


def _by_operator(node: gs.Node, opset: int, types: Types, half: Half, kept: Kept) -> None:
    schema = schema_of(node, opset)
    for tensor, formal in zip(node.inputs, formals(schema.inputs, len(node.inputs)), strict=True):
        if types.get(tensor.name) in FLOATS and half.element not in allowed_types(schema, formal):
            kept.nodes[node.name] = f"{node.op} of opset {opset} takes no {half.title} as its {formal.name}"
    if node.op in SQUARES:
        kept.nodes[node.name] = f"{node.op} is computed through squares, which become {half.title} tensors of their own"


def _float_constants(node: gs.Node) -> Iterator[gs.Constant]:
    return (t for t in node.inputs if isinstance(t, gs.Constant) and t.dtype == np.float32 and t.values.size)


def _by_constant(node: gs.Node, constant: gs.Constant, half: Half, kept: Kept, needs: dict[str, str]) -> None:
    """Clamp a mask beyond the half type; keep FP32 for other constants beyond it and scalars that would become zero."""
    values = constant.values
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max(initial=0.0))
    if largest > half.largest and values.size == 1 and node.op in MASKING and float(values.item()) < 0:
        clamped = f"{float(values.item()):.4g} clamped to {-half.limit:.6g}, which erases a score as well; {half.holds}"
        kept.clamped[constant.name] = clamped
    elif largest > half.largest:
        kept.nodes[node.name] = f"its constant '{constant.name}' reaches {largest:.4g}; {half.holds}"
    elif values.size == 1 and largest and not float(half.array(values).item()):
        why = f"'{constant.name}' is {largest:.4g}, which is zero in {half.title}"
        kept.nodes[node.name] = why
        needs.update((output.name, f"may be as small as {why}") for output in node.outputs)


def _misfit(largest: float, half: Half) -> str | None:
    if largest > half.limit:
        return f"reached {largest:.4g} on the measured data; {half.holds}, less a margin of two"
    if 0 < largest < half.smallest:
        return f"never exceeded {largest:.4g} on the measured data; {half.title} is subnormal below {half.smallest:.2g}"
    return None


def _explained_by_masks(graph: gs.Graph, clamped: Iterable[str], ranges: Mapping[str, float]) -> set[str]:
    """Find tensors whose measured range is that of a mask constant, which will be clamped, and not of an activation."""
    magnitude: dict[str, float] = {}  # tensor name -> the constant's magnitude it carries
    explained = set()
    masks = set(clamped)
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and tensor.name in masks:
                magnitude[tensor.name] = float(np.abs(tensor.values).max())
        carried = max((magnitude.get(tensor.name, 0.0) for tensor in node.inputs), default=0.0)
        for tensor in node.outputs:
            if carried and carried / 2 <= ranges.get(tensor.name, 0.0) <= 2 * carried:
                magnitude[tensor.name] = carried
                explained.add(tensor.name)
    return explained


def _by_tensor(graph: gs.Graph, needs: dict[str, str], kept: Kept) -> None:
    """Keep FP32 for the nodes that make or read a tensor in `needs`; Cast, Q and DQ adapt to their neighbours."""
    for node in graph.nodes:
        reads = next((tensor.name for tensor in node.inputs if tensor.name in needs), None)
        if reads and node.op in MOVING:
            needs.update((output.name, needs[reads]) for output in node.outputs)
        makes = next((tensor.name for tensor in node.outputs if tensor.name in needs), None)
        if makes and node.op not in PAIR:
            kept.nodes.setdefault(node.name, f"its result {needs[makes]}")
        elif reads and node.op not in (CAST, *PAIR):
            kept.nodes.setdefault(node.name, f"its operand '{reads}' {needs[reads]}")


def _by_integer_result(graph: gs.Graph, types: Types, half: Half, kept: Kept) -> None:
    """Keep FP32 where floats become integers (MPNet's relative position buckets): rounding would change the count."""
    counting: set[str] = set()  # tensors that lead to an integer
    for node in reversed(graph.nodes):
        element = types[node.outputs[0].name]
        to_integer = node.op == CAST and element in (TensorProto.INT32, TensorProto.INT64)
        if not to_integer and counting.isdisjoint(tensor.name for tensor in node.outputs):
            continue
        counting.update(tensor.name for tensor in node.inputs if types.get(tensor.name) in FLOATS)
        if element in FLOATS and node.op not in PAIR:
            kept.nodes.setdefault(
                node.name, f"its result becomes an integer, which {half.title} could round to another"
            )


def _back_to_dequantizers(graph: gs.Graph, kept: Kept) -> None:
    """Keep FP32 for layout nodes between a DequantizeLinear and an FP32 node, so that no Cast is needed there."""
    for node in reversed(graph.nodes):
        for tensor in node.inputs if node.name in kept.nodes else ():
            chain = []
            while tensor.inputs and tensor.inputs[0].op in LAYOUT:
                chain.append(tensor.inputs[0].name)
                tensor = tensor.inputs[0].inputs[0]
            if tensor.inputs and tensor.inputs[0].op == DEQUANTIZE:
                kept.nodes.update((name, f"carries an operand of {node.name}") for name in chain)
