"""Pass: one multiplication per tensor and factor, where linears that read the same tensor smooth it alike."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from export.passes.base import PassResult
from export.passes.share_quantizers import EqualNodes, content

Key = tuple[int, bytes]  # input tensor, factor


def share_factors(graph: gs.Graph) -> PassResult:
    """Merge equal multiplications by a constant.

    Before: ``x -> Mul(f) -> a`` and ``x -> Mul(f) -> b`` with bit-equal constants.
    After: ``x -> Mul(f) -> a, b``.
    Leaves alone: other constants, and a product that is one of the graph's outputs (declined, named).
    """
    equal = EqualNodes(graph)
    for node in [node for node in graph.nodes if node.op == "Mul"]:
        key = _key(node)
        if key is not None:
            equal.add(node, key)
    return equal.result()


def _key(node: gs.Node) -> Key | None:
    """Key of a multiplication by a constant; None unless exactly one operand is one."""
    constants = [tensor for tensor in node.inputs if isinstance(tensor, gs.Constant)]
    variables = [tensor for tensor in node.inputs if not isinstance(tensor, gs.Constant)]
    if len(constants) != 1 or len(variables) != 1:
        return None
    return id(variables[0]), content(constants[0])
