"""Pass: token-type embeddings become part of the position table, and a correction for the second type."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from export.passes.base import Declined, PassResult


def fold_types(graph: gs.Graph) -> PassResult:
    """Add the first type's row to every position's, once and for all.

    Before: ``words + Gather(types [1 or 2, H], ids) + Gather(positions [N, H], p)``, in any order of the sums. After:
    ``words + Cast(ids) * (types[1] - types[0]) + Gather(positions + types[0], p)``; with one type the product is left
    out. The same sums up to float rounding, for the ids 0 and 1 that such a table has.
    Leaves alone: types of more than two rows or in INT8, and, declined with the reason, types whose rows are read
    elsewhere or that have no float position table in the same sum.
    """
    changed: list[str] = []
    declined: list[Declined] = []
    for node in [node for node in graph.nodes if _rows(node) in (1, 2)]:
        add = _sum_of(node)
        if add is None:
            declined.append(Declined(node.name, "its rows are not only added to others"))
            continue
        positions = _positions(add, node)
        if positions is None:
            declined.append(Declined(node.name, "no position table of its own is added in the same sum"))
            continue
        _fold(graph, node, add, positions)
        changed.append(node.name)
    return PassResult(tuple(changed), tuple(declined))


def _rows(node: gs.Node) -> int:
    """Rows of the float table [rows, H] a Gather looks up in; 0 for any other node."""
    if node.op != "Gather" or node.attrs.get("axis", 0) != 0 or not isinstance(node.inputs[0], gs.Constant):
        return 0
    table = node.inputs[0]
    return int(table.shape[0]) if len(table.shape) == 2 and np.dtype(table.dtype) == np.float32 else 0


def _sum_of(gather: gs.Node) -> gs.Node | None:
    """The Add that is the only reader of what `gather` looks up."""
    readers = gather.outputs[0].outputs
    return readers[0] if len(readers) == 1 and readers[0].op == "Add" else None


def _positions(add: gs.Node, types: gs.Node) -> gs.Node | None:
    """Find the look-up in the same sum with the smallest table that nothing else reads; None without one."""
    found = [producer for tensor in _summands(add) for producer in tensor.inputs if producer is not types]
    tables = [node for node in found if _rows(node) > 2 and len(node.inputs[0].outputs) == 1]
    words = max((_rows(node) for node in found), default=0)
    smaller = [node for node in tables if _rows(node) < words]
    return min(smaller, key=_rows, default=None)


def _summands(add: gs.Node) -> list[gs.Tensor]:
    """Operands of the whole sum: of `add`, of the Adds it reads and of the one that alone reads it."""
    readers = add.outputs[0].outputs
    if len(readers) == 1 and readers[0].op == "Add":
        add = readers[0]
    found: list[gs.Tensor] = []
    for tensor in add.inputs:
        producer = tensor.inputs[0] if tensor.inputs else None
        found += producer.inputs if producer is not None and producer.op == "Add" else [tensor]
    return found


def _fold(graph: gs.Graph, types: gs.Node, add: gs.Node, positions: gs.Node) -> None:
    table, rows, ids = types.inputs[0].values, positions.inputs[0], types.inputs[1]
    positions.inputs[0] = gs.Constant(rows.name, rows.values + table[0])
    looked_up = types.outputs[0]
    if len(table) == 1:  # nothing is left to add: readers of the sum take its other operand
        (other,) = (tensor for tensor in add.inputs if tensor is not looked_up)
        for reader in list(add.outputs[0].outputs):
            reader.inputs = [other if tensor is add.outputs[0] else tensor for tensor in reader.inputs]
        graph.outputs = [other if tensor is add.outputs[0] else tensor for tensor in graph.outputs]
        add.outputs.clear()
        types.outputs.clear()
        return
    # The second type adds the difference of the two rows, times its id of 1.
    name = types.name
    number, column = (gs.Variable(f"{name}.{part}", dtype=np.dtype(np.float32)) for part in ("number", "column"))
    axes = gs.Constant(f"{name}.axes", np.array([-1]))
    difference = gs.Constant(f"{name}.difference", (table[1] - table[0]).astype(np.float32))
    types.outputs.clear()
    graph.nodes += [
        gs.Node("Cast", f"{name}.number", {"to": 1}, [ids], [number]),
        gs.Node("Unsqueeze", f"{name}.column", {}, [number, axes], [column]),
        gs.Node("Mul", f"{name}.rows", {}, [column, difference], [looked_up]),
    ]
