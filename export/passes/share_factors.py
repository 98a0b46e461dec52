"""Pass: one multiplication per tensor and factor, where linears that read the same tensor smooth it alike."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from export.passes.base import Declined, PassResult
from export.passes.share_quantizers import redirect

Key = tuple[int, bytes]  # input tensor, factor


def share_factors(graph: gs.Graph) -> PassResult:
    """Merge equal multiplications by a constant.

    Before: ``x -> Mul(f) -> a`` and ``x -> Mul(f) -> b`` with bit-equal constants.
    After: ``x -> Mul(f) -> a, b``.
    Leaves alone: other constants, and a product that is one of the graph's outputs (declined, named).
    """
    kept: dict[Key, gs.Node] = {}
    changed: list[str] = []
    declined: list[Declined] = []
    for node in [node for node in graph.nodes if node.op == "Mul"]:
        key = _key(node)
        if key is None:
            continue
        twin = kept.setdefault(key, node)
        if twin is node:
            continue
        if any(node.outputs[0] is output for output in graph.outputs):
            declined.append(Declined(node.name, f"same as {twin.name}, but its output is one of the graph's"))
        else:
            redirect(node.outputs[0], twin.outputs[0])
            node.outputs.clear()
            changed.append(node.name)
    return PassResult(tuple(changed), tuple(declined))


def _key(node: gs.Node) -> Key | None:
    """None unless exactly one operand is a constant."""
    constants = [tensor for tensor in node.inputs if isinstance(tensor, gs.Constant)]
    variables = [tensor for tensor in node.inputs if not isinstance(tensor, gs.Constant)]
    if len(constants) != 1 or len(variables) != 1:
        return None
    values = np.asarray(constants[0].values)
    return id(variables[0]), f"{values.dtype}{values.shape}".encode() + values.tobytes()
