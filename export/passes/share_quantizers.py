"""Pass: one QuantizeLinear per tensor and scale, one DequantizeLinear behind it; and merging equal nodes in general."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import onnx_graphsurgeon as gs

from export.names import PAIR
from export.passes.base import Declined, PassResult
from qdq.errors import PassError

Key = tuple[int, bytes, bytes, str]  # input tensor, scale, zero-point, attributes


def share_quantizers(graph: gs.Graph) -> PassResult:
    """Merge quantizers of one tensor.

    Before: ``x -> Q1 -> DQ1 -> a`` and ``x -> Q2 -> DQ2 -> b`` with bit-equal scales and zero-points.
    After: ``x -> Q1 -> DQ1 -> a, b``.
    Leaves alone: quantizers of one tensor with different scales and a pair whose output is the graph's (declined,
    named), weights. Raises PassError naming a node whose scale or zero-point is computed at run time.
    """
    equal = EqualNodes(graph)
    first: dict[int, gs.Node] = {}  # of every tensor
    for node in [node for node in graph.nodes if node.op in PAIR]:
        key = _key(node)
        if isinstance(node.inputs[0], gs.Constant) or not equal.add(node, key):
            continue
        other = first.setdefault(key[0], node)
        if other is not node:
            equal.declined.append(Declined(node.name, f"same tensor as {other.name}, but another scale"))
    return equal.result()


def _key(node: gs.Node) -> Key:
    return id(node.inputs[0]), _bytes(node, 1), _bytes(node, 2), repr(sorted(node.attrs.items()))


def _bytes(node: gs.Node, index: int) -> bytes:
    """A comparable form of a scale or zero-point."""
    if index >= len(node.inputs):
        return b""
    tensor = node.inputs[index]
    if not isinstance(tensor, gs.Constant):
        raise PassError(f"{node.name}: its scale or zero-point is computed at run time; export it as a constant")
    return content(tensor)


class EqualNodes:
    """The first node of every key, and the later ones that were merged into it or declined."""

    def __init__(self, graph: gs.Graph) -> None:
        self._outputs = graph.outputs
        self._kept: dict[Hashable, gs.Node] = {}
        self._changed: list[str] = []
        self.declined: list[Declined] = []

    def add(self, node: gs.Node, key: Hashable) -> bool:
        """Return True when `node` is the first of its key; else merge it into that one, or decline a graph output."""
        first = self._kept.setdefault(key, node)
        if first is node:
            return True
        if any(node.outputs[0] is output for output in self._outputs):
            self.declined.append(Declined(node.name, f"same as {first.name}, but its output is one of the graph's"))
            return False
        for reader in list(node.outputs[0].outputs):
            reader.inputs = [first.outputs[0] if tensor is node.outputs[0] else tensor for tensor in reader.inputs]
        node.outputs.clear()
        self._changed.append(node.name)
        return False

    def result(self) -> PassResult:
        """Every node that was merged, and every one that was declined."""
        return PassResult(tuple(self._changed), tuple(self.declined))


def content(constant: gs.Constant) -> bytes:
    """A constant's type, shape and values, to compare by."""
    values = np.asarray(constant.values)
    return f"{values.dtype}{values.shape}".encode() + values.tobytes()
