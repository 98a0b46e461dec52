"""Pass: query, key and value of an attention in one product, and their heads out of it by one transposition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from export.names import CODES, DEQUANTIZE, SCALE, ZERO_POINT, together
from export.passes.base import Declined, PassResult
from export.passes.quantized_linears import QuantizedLinear, quantized_linear

HEADS_FIRST = [0, 2, 1, 3]  # [B, S, heads, d] to [B, heads, S, d]
ALL_HEADS_FIRST = [2, 0, 3, 1, 4]  # [B, S, parts, heads, d] to [parts, B, heads, S, d]


@dataclass(frozen=True)
class Projection:
    """One linear whose result [B, S, heads * d] is split into heads and transposed."""

    linear: QuantizedLinear
    bias: gs.Node | None  # Add of a constant [heads * d]
    reshape: gs.Node  # to [0, 0, heads, d]
    transpose: gs.Node  # to [B, heads, S, d], or to [B, heads, d, S] for a key

    @property
    def name(self) -> str:
        """Name of its MatMul."""
        return str(self.linear.node.name)

    @property
    def heads(self) -> tuple[int, int]:
        """Number of heads, and the size of each."""
        _, _, heads, size = self.reshape.inputs[1].values.tolist()
        return heads, size

    @property
    def bias_values(self) -> NDArray[np.floating]:
        """The bias [heads * d]; zeros without one, in the type of the weights' scale."""
        constant = None if self.bias is None else _constant(self.bias)
        if constant is None:
            return np.zeros(self.linear.codes.shape[1], self.linear.scales.dtype)
        return np.asarray(constant.values)


def merge_projections(graph: gs.Graph) -> PassResult:
    """Compute the projections that read one tensor together.

    Before: ``x -> MatMul(Wq) -> Add(bq) -> Reshape [0,0,h,d] -> Transpose [0,2,1,3]``, the same for k and v, all with
    INT8 weights. After: ``x -> MatMul([Wq Wk Wv]) -> Add([bq bk bv]) -> Reshape [0,0,3,h,d] -> Transpose [2,0,3,1,4]``,
    and one Gather each. Codes, scales and biases stay what they were, one behind the other, and so does every sum.
    Leaves alone: float weights, and, declined with the reason, a projection without another one of the same heads on
    its tensor (in the last block of a classifier the query, which reads one row), one whose steps are read elsewhere.
    """
    found, declined = [], []
    for node in graph.nodes:
        linear = quantized_linear(node) if node.op == "MatMul" else None
        if linear is not None:
            projection = _projection(graph, linear)
            if isinstance(projection, Projection):
                found.append(projection)
            elif projection is not None:
                declined.append(projection)
    changed: list[str] = []
    merging = _Merging(graph)
    for group in _groups(found):
        name = together([projection.name for projection in group]) if len(group) > 1 else None
        if name is None:
            why = "no other projection into as many heads reads its tensor" if len(group) == 1 else "their names differ"
            declined.extend(Declined(projection.name, why) for projection in group)
            continue
        merging.merge(group, name)
        changed.append(name)
    return PassResult(tuple(changed), tuple(declined))


def _projection(graph: gs.Graph, linear: QuantizedLinear) -> Projection | Declined | None:
    """The projection that starts with `linear`; None for one whose result is not split into heads."""
    node = linear.node
    bias = _only_reader(node, "Add")
    if bias is not None and _constant(bias) is None:
        return None
    reshape = _only_reader(bias or node, "Reshape")
    transpose = None if reshape is None else _only_reader(reshape, "Transpose")
    if reshape is None or transpose is None:
        readers = [reader.op for tensor in (bias or node).outputs for reader in tensor.outputs]
        heads = len(readers) > 1 and "Reshape" in readers
        return Declined(node.name, "its result is read elsewhere, too") if heads else None
    target = reshape.inputs[1]
    to_heads = isinstance(target, gs.Constant) and target.values.shape == (4,) and not target.values[:2].any()
    if not to_heads or reshape.attrs.get("allowzero") or (target.values[2:] <= 0).any():
        return None
    outputs = [made for step in (node, bias, reshape) if step is not None for made in step.outputs]
    if any(made is output for made in outputs for output in graph.outputs):
        return Declined(node.name, "one of its steps is an output of the graph")
    return Projection(linear, bias, reshape, transpose)


def _only_reader(node: gs.Node, op: str) -> gs.Node | None:
    """The one node that reads the result, when its operator is `op`."""
    readers = node.outputs[0].outputs
    return readers[0] if len(readers) == 1 and readers[0].op == op else None


def _constant(add: gs.Node) -> gs.Constant | None:
    """The constant vector among the operands of an Add."""
    constants = [tensor for tensor in add.inputs if isinstance(tensor, gs.Constant) and tensor.values.ndim == 1]
    return constants[0] if constants else None


def _groups(found: Sequence[Projection]) -> Iterator[list[Projection]]:
    """Projections of one tensor into the same heads, in types that can stand in one constant; in graph order."""
    groups: dict[tuple[object, ...], list[Projection]] = {}
    for projection in found:
        types = projection.linear.scales.dtype, projection.bias_values.dtype
        groups.setdefault((id(projection.linear.input), projection.heads, types), []).append(projection)
    yield from groups.values()


class _Merging:
    """The graph under change, and the constants that were joined already (ALBERT reads one set in every layer)."""

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self._weights: dict[tuple[int, ...], gs.Variable] = {}
        self._biases: dict[tuple[int, ...], gs.Constant] = {}

    def merge(self, group: Sequence[Projection], name: str) -> None:
        """Put one product, called `name`, in place of those of `group`."""
        stem, _, step = name.rpartition(".")
        number = step.removeprefix("MatMul")  # "_1" in the second call of a module
        # The steps of one projection, wider; a bias that only some have is zero for the others.
        steps = [gs.Node("MatMul", name, {}, [group[0].linear.input, self._weight(group, stem)])]
        if any(projection.bias is not None for projection in group):
            steps.append(gs.Node("Add", f"{stem}.Add{number}", {}, [self._bias(group, stem)]))
        shape = np.array([0, 0, len(group), *group[0].heads], np.int64)
        constant = gs.Constant(f"{stem}.Reshape{number}.shape", shape)
        steps.append(gs.Node("Reshape", f"{stem}.Reshape{number}", {}, [constant]))
        steps.append(gs.Node("Transpose", f"{stem}.Transpose{number}", {"perm": ALL_HEADS_FIRST}))
        tensors = [gs.Variable(node.name, dtype=group[0].linear.scales.dtype) for node in steps]
        for node, made in zip(steps, tensors, strict=True):
            node.outputs = [made]
        for node, read in zip(steps[1:], tensors, strict=False):
            node.inputs.insert(0, read)
        self.graph.nodes.extend(steps)
        # Every projection finds its heads where it had them.
        for index, projection in enumerate(group):
            self._take(projection, tensors[-1], index)

    def _take(self, projection: Projection, heads: gs.Variable, index: int) -> None:
        """Read one projection's heads [B, heads, S, d] from those of all, in place of its own steps."""
        stem, _, step = projection.name.rpartition(".")
        name = f"{stem}.Gather{step.removeprefix('MatMul')}"
        transpose = projection.transpose
        order = [HEADS_FIRST.index(axis) for axis in transpose.attrs["perm"]]
        if order == sorted(order):
            made, transpose.outputs = list(transpose.outputs), []
        else:  # a float key is transposed for its product at once
            made = [gs.Variable(name, dtype=heads.dtype)]
            transpose.inputs, transpose.attrs["perm"] = [*made], order
        place = gs.Constant(f"{name}.index", np.asarray(index, np.int64))
        self.graph.nodes.append(gs.Node("Gather", name, {"axis": 0}, [heads, place], made))

    def _weight(self, group: Sequence[Projection], stem: str) -> gs.Variable:
        """Dequantized weights [K, parts * N] of a group, with the scale of every column."""
        linears = [projection.linear for projection in group]
        key = tuple(id(tensor) for linear in linears for tensor in linear.weight.inputs[:2])
        if key not in self._weights:
            name = f"{stem}.weight_quantizer"
            scales = np.concatenate([np.broadcast_to(linear.scales, linear.codes.shape[1:]) for linear in linears])
            constants = [
                gs.Constant(name + CODES, np.concatenate([linear.codes for linear in linears], axis=1)),
                gs.Constant(name + SCALE, scales),
                gs.Constant(name + ZERO_POINT, np.zeros(scales.shape, np.int8)),
            ]
            self._weights[key] = gs.Variable(f"{name}.dequantize", dtype=scales.dtype)
            node = gs.Node(DEQUANTIZE, f"{name}.dequantize", {"axis": 1}, constants, [self._weights[key]])
            self.graph.nodes.append(node)
        return self._weights[key]

    def _bias(self, group: Sequence[Projection], stem: str) -> gs.Constant:
        key = tuple(id(_constant(projection.bias)) if projection.bias else 0 for projection in group)
        if key not in self._biases:
            values = np.concatenate([projection.bias_values for projection in group])
            self._biases[key] = gs.Constant(f"{stem}.bias", values)
        return self._biases[key]
