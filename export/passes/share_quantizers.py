"""Pass: one QuantizeLinear per tensor and scale, one DequantizeLinear behind it."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from export.names import PAIR
from export.passes.base import Declined, PassResult
from export.passes.equal_nodes import EqualNodes, content
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
