"""Merging nodes that compute the same: every reader gets the first one. Used by the passes that share nodes."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import onnx_graphsurgeon as gs

from export.passes.base import Declined, PassResult


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
