"""Pass: one QuantizeLinear per tensor and scale, one DequantizeLinear behind it."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from export.names import DEQUANTIZE, QUANTIZE
from export.passes.base import Declined, PassResult
from qdq.errors import PassError

Key = tuple[int, bytes, bytes]


def share_quantizers(graph: gs.Graph) -> PassResult:
    """Merge quantizers of one tensor.

    Before: ``x -> Q1 -> DQ1 -> a`` and ``x -> Q2 -> DQ2 -> b`` with bit-equal scales and zero-points.
    After: ``x -> Q1 -> DQ1 -> a, b``.
    Leaves alone: quantizers of one tensor with different scales (declined, named), weights (codes behind a DQ only).
    """
    first: dict[Key, gs.Node] = {}
    scales: dict[int, list[gs.Node]] = {}
    changed: list[str] = []
    for node in [node for node in graph.nodes if node.op in (QUANTIZE, DEQUANTIZE)]:
        key = _key(node)
        kept = first.setdefault(key, node)
        if kept is node:
            if node.op == QUANTIZE:
                scales.setdefault(key[0], []).append(node)
            continue
        _redirect(graph, node.outputs[0], kept.outputs[0])
        node.outputs.clear()
        changed.append(node.name)
    declined = tuple(
        Declined(node.name, f"same tensor as {nodes[0].name}, but another scale")
        for nodes in scales.values()
        for node in nodes[1:]
    )
    return PassResult(tuple(changed), declined)


def _key(node: gs.Node) -> Key:
    return (id(node.inputs[0]), *(_bytes(node, index) for index in (1, 2)))


def _bytes(node: gs.Node, index: int) -> bytes:
    """A comparable form of a scale or zero-point."""
    if index >= len(node.inputs):
        return b""
    tensor = node.inputs[index]
    if not isinstance(tensor, gs.Constant):
        raise PassError(f"{node.name}: its scale or zero-point is computed at run time; export it as a constant")
    values = np.asarray(tensor.values)
    return f"{values.dtype}{values.shape}".encode() + values.tobytes()


def _redirect(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    for reader in list(old.outputs):
        reader.inputs = [new if tensor is old else tensor for tensor in reader.inputs]
    graph.outputs = [new if tensor is old else tensor for tensor in graph.outputs]
