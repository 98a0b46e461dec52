"""Pass: one QuantizeLinear per tensor and scale, one DequantizeLinear behind it."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from export.names import DEQUANTIZE, QUANTIZE
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
    kept: dict[Key, gs.Node] = {}
    quantizers: dict[int, gs.Node] = {}  # the first of every tensor
    changed: list[str] = []
    declined: list[Declined] = []
    for node in [node for node in graph.nodes if node.op in (QUANTIZE, DEQUANTIZE)]:
        key = _key(node)
        if isinstance(node.inputs[0], gs.Constant):
            continue
        twin = kept.setdefault(key, node)
        if twin is node:
            first = quantizers.setdefault(key[0], node)
            if first is not node:
                declined.append(Declined(node.name, f"same tensor as {first.name}, but another scale"))
        elif any(node.outputs[0] is output for output in graph.outputs):
            declined.append(Declined(node.name, f"same as {twin.name}, but its output is one of the graph's"))
        else:
            redirect(node.outputs[0], twin.outputs[0])
            node.outputs.clear()
            changed.append(node.name)
    return PassResult(tuple(changed), tuple(declined))


def _key(node: gs.Node) -> Key:
    return id(node.inputs[0]), _bytes(node, 1), _bytes(node, 2), repr(sorted(node.attrs.items()))


def _bytes(node: gs.Node, index: int) -> bytes:
    """A comparable form of a scale or zero-point."""
    if index >= len(node.inputs):
        return b""
    tensor = node.inputs[index]
    if not isinstance(tensor, gs.Constant):
        raise PassError(f"{node.name}: its scale or zero-point is computed at run time; export it as a constant")
    values = np.asarray(tensor.values)
    return f"{values.dtype}{values.shape}".encode() + values.tobytes()


def redirect(old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every reader of `old` read `new`."""
    for reader in list(old.outputs):
        reader.inputs = [new if tensor is old else tensor for tensor in reader.inputs]
