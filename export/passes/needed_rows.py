"""Pass: a row selection (the first token's, for a pooler) moves up to where every row is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from export.names import PAIR
from export.passes.base import Declined, PassResult

Shape = tuple[int | str | None, ...]
Shapes = Mapping[str, Shape]
Demand = tuple[gs.Tensor, int]  # a tensor of which only one row along this axis is needed
Rule = Callable[[Shapes, gs.Node, int], "tuple[Demand, ...] | None"]

# Each output row of these depends on the same row of their inputs only.
ELEMENTWISE = frozenset(
    {"Add", "Cast", "Div", "Elu", "Erf", "Gelu", "Identity", "Mul", "Pow", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh"}
)
ALONG_LAST_AXIS = frozenset({"LayerNormalization", "Softmax"})


def needed_rows(graph: gs.Graph, attention: bool = True) -> PassResult:
    """Compute only the rows that are read; without `attention`, not beyond the last attention's result.

    Before: ``x[B,S,H] -> ... last encoder block ... -> y[B,S,H] -> Gather(axis 1, index i) -> pooler``, every row of y
    computed and one of them read. After: ``Gather(axis 1, [i])`` in front of the block's query and residual branch, so
    that behind them the block works on [B,1,H]; keys and values still see every row. Every value that is read stays
    what it was, up to the order of float sums inside a kernel.
    Leaves alone: a Gather of another axis, and, declined with the reason, one whose tensor is read elsewhere or is an
    output of the graph, and one whose producer mixes rows.
    """
    changed: list[str] = []
    declined: list[Declined] = []
    for node in [node for node in graph.nodes if node.op == "Gather"]:
        index = _row_index(node)
        if index is None or not node.inputs[0].inputs:
            continue
        selection = _Selection(graph, node, index, _shapes(graph), RULES if attention else BEHIND_ATTENTION)
        if selection.run():
            changed.append(node.name)
        elif selection.reason:
            declined.append(Declined(node.name, selection.reason))
    return PassResult(tuple(changed), tuple(declined))


def _row_index(node: gs.Node) -> int | None:
    """The constant scalar row a Gather along axis 1 takes."""
    data, index = node.inputs
    if node.attrs.get("axis", 0) != 1 or isinstance(data, gs.Constant) or not isinstance(index, gs.Constant):
        return None
    return int(index.values) if index.values.ndim == 0 else None


def _shapes(graph: gs.Graph) -> dict[str, Shape]:
    """Shape of every tensor, from ONNX's shape inference."""
    proto = onnx.shape_inference.infer_shapes(gs.export_onnx(graph))
    known = (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)
    shapes: dict[str, Shape] = {value.name: _dimensions(value) for value in known}
    shapes.update((t.name, tuple(t.values.shape)) for t in graph.tensors().values() if isinstance(t, gs.Constant))
    return shapes


def _dimensions(value: onnx.ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in dims)


class _Selection:
    """One Gather and the nodes that can work on its row alone, found against the flow of the graph."""

    def __init__(
        self, graph: gs.Graph, gather: gs.Node, index: int, shapes: dict[str, Shape], rules: Mapping[str, Rule]
    ) -> None:
        self.graph, self.gather, self.index, self.shapes, self.rules = graph, gather, index, shapes, rules
        self.reason = ""
        self.axes: dict[int, int] = {}  # tensor -> the axis along which some reader takes the row only
        self.narrow: dict[int, tuple[gs.Node, tuple[Demand, ...]]] = {}  # nodes that will see the row only
        self.repeated: dict[int, gs.Node] = {}  # pairs that get a copy for the row
        self.made: dict[int, gs.Tensor] = {}  # tensor -> what holds its row

    def run(self) -> bool:
        """Find the nodes, and select in front of them instead of behind."""
        self._walk_back()
        if not any(node.op in ("MatMul", "Gemm") for node, _ in self.narrow.values()):
            return False
        for node, wanted in list(self.narrow.values()):
            taken = {id(tensor) for tensor, _ in wanted}
            node.inputs = [self._row_of(tensor) if id(tensor) in taken else tensor for tensor in node.inputs]
        self.gather.inputs[1] = gs.Constant(f"{self.gather.name}.row", np.asarray(0, np.int64))
        return True

    def _walk_back(self) -> None:
        """Walk the sorted graph backwards, so that all readers of a tensor are known before its producer."""
        source = self.gather.inputs[0]
        self.axes[id(source)] = 1
        asking = {id(source): [id(self.gather)]}  # tensor -> narrowed nodes that read it
        for node in reversed(self.graph.nodes):
            output = node.outputs[0]
            axis = self.axes.get(id(output))
            if axis is None or len(node.outputs) > 1:
                continue
            # Everything read from it as rows only? Then it can compute that row alone, if its operator works by rows.
            alone = self._read_by(output, asking[id(output)])
            rule = self.rules.get(node.op) if alone or node.op in PAIR else None
            wanted = rule(self.shapes, node, axis) if rule is not None else None
            if wanted is None or any(self.axes.get(id(tensor), own) != own for tensor, own in wanted):
                how = "does not work row by row" if alone else "is needed in full by other nodes"
                self.reason = self.reason or f"{node.name} ({node.op}) {how}"
                continue
            # The demand moves on to its inputs.
            if alone:
                self.narrow[id(node)] = (node, wanted)
            else:
                self.repeated[id(node)] = node  # cheaper than selecting behind it, and a runtime can fuse it
            for tensor, own in wanted:
                self.axes[id(tensor)] = own
                asking.setdefault(id(tensor), []).extend([id(node)] if alone else [])

    def _read_by(self, tensor: gs.Tensor, readers: list[int]) -> bool:
        if any(tensor is output for output in self.graph.outputs):
            return False
        return all(id(reader) in readers for reader in tensor.outputs)

    def _row_of(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return the tensor that holds the row: `tensor` itself, a repeated pair's output, or a selection made here."""
        producer = tensor.inputs[0] if tensor.inputs else None
        if id(producer) in self.narrow:
            return tensor
        if id(tensor) not in self.made:
            name = f"{tensor.name}.row_{self.index}"
            row = gs.Variable(name, dtype=tensor.dtype)
            if producer is not None and id(producer) in self.repeated:
                inputs = [self._row_of(producer.inputs[0]), *producer.inputs[1:]]
                self.graph.nodes.append(gs.Node(producer.op, name, dict(producer.attrs), inputs, [row]))
            else:
                index = gs.Constant(f"{name}.index", np.asarray([self.index], np.int64))
                axis = {"axis": self.axes[id(tensor)]}
                self.graph.nodes.append(gs.Node("Gather", name, axis, [tensor, index], [row]))
            self.made[id(tensor)] = row
        return self.made[id(tensor)]


def _elementwise(shapes: Shapes, node: gs.Node, axis: int) -> tuple[Demand, ...] | None:
    return _of_operands(shapes, node, node.inputs, axis)


def _along_last_axis(shapes: Shapes, node: gs.Node, axis: int) -> tuple[Demand, ...] | None:
    last = len(shapes.get(node.outputs[0].name, ())) - 1
    return ((node.inputs[0], axis),) if node.attrs.get("axis", -1) in (-1, last) and axis < last else None


def _pair(shapes: Shapes, node: gs.Node, axis: int) -> tuple[Demand, ...] | None:
    """Per tensor only: a scale per row would have to be selected as well."""
    data, *constants = node.inputs
    per_tensor = all(isinstance(tensor, gs.Constant) and tensor.values.ndim == 0 for tensor in constants)
    return ((data, axis),) if per_tensor and not isinstance(data, gs.Constant) else None


def _matmul(shapes: Shapes, node: gs.Node, axis: int) -> tuple[Demand, ...] | None:
    """Rows of the product are rows of the first factor; the second factor is needed whole."""
    behind = len(shapes.get(node.outputs[0].name, ())) - 2
    return _of_operands(shapes, node, node.inputs[:1], axis) if axis == behind else None


def _transpose(shapes: Shapes, node: gs.Node, axis: int) -> tuple[Demand, ...] | None:
    return ((node.inputs[0], node.attrs["perm"][axis]),) if "perm" in node.attrs else None


def _reshape(shapes: Shapes, node: gs.Node, axis: int) -> tuple[Demand, ...] | None:
    """Only one that keeps batch and rows and splits or merges the axes behind them: ``[0, 0, heads, d]``."""
    target = node.inputs[1]
    keeps = isinstance(target, gs.Constant) and not target.values[: axis + 1].any() and not node.attrs.get("allowzero")
    return ((node.inputs[0], axis),) if keeps else None


def _of_operands(shapes: Shapes, node: gs.Node, operands: list[gs.Tensor], axis: int) -> tuple[Demand, ...] | None:
    """The rows needed of the operands of a broadcasting operator whose output is read along `axis`."""
    rank = len(shapes.get(node.outputs[0].name, ()))
    wanted = []
    for tensor in operands:
        shape = shapes.get(tensor.name)
        if not rank or shape is None:
            return None
        own = axis - (rank - len(shape))
        if own >= 0 and shape[own] != 1:
            wanted.append((tensor, own))
    return tuple(wanted)


# Operators that work row by row; every other one mixes rows.
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(ALONG_LAST_AXIS, _along_last_axis),
    **dict.fromkeys(PAIR, _pair),
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Transpose": _transpose,
}
# Behind an attention no node moves an axis; its result is reshaped from heads.
BEHIND_ATTENTION = {op: rule for op, rule in RULES.items() if op not in ("Reshape", "Transpose")}
