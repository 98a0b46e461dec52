"""The part of a graph that works token by token, found for `export.passes.pack_tokens`.

A tensor is *token-wise* when its first two axes are batch and sequence, both of any size; a node works token by token
when every token of its output depends on the same token of its inputs only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from export.names import DEQUANTIZE, IR_VERSION, PAIR
from export.passes.needed_rows import ELEMENTWISE, Shape, Shapes

LOGIC = frozenset({"And", "Clip", "Equal", "Max", "Min", "Not", "Or", "Where"})
Rule = Callable[[Shapes, gs.Node], bool]


VARIES = "varies"  # a size that follows from those of the inputs
LARGE = 1 << 12  # values of a constant that no shape is computed from


def varying_shapes(graph: gs.Graph) -> Shapes:
    """Shape of every tensor that has one whatever the inputs' sizes are: a number, VARIES, or None for unknown sizes.

    From ONNX's shape inference at two batches and sequences. Symbols alone would not do: of a slice whose end is the
    sequence, such as the positions, it says nothing.
    """
    tensors = graph.tensors().values()
    weights = [tensor for tensor in tensors if isinstance(tensor, gs.Constant) and np.prod(tensor.shape) > LARGE]
    light = graph.copy(tensor_map={w.name: gs.Variable(w.name, dtype=w.dtype, shape=w.shape) for w in weights})
    proto = gs.export_onnx(light, do_type_check=False)
    proto.ir_version = IR_VERSION
    names = {weight.name for weight in weights}
    kept = [value for value in proto.graph.value_info if value.name in names]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    known = [_at_size(proto, batch, sequence) for batch, sequence in ((3, 7), (5, 11))]
    shapes: dict[str, Shape] = {}
    for name in known[0].keys() & known[1].keys():
        first, second = known[0][name], known[1][name]
        if len(first) == len(second):
            both = zip(first, second, strict=True)
            shapes[name] = tuple(None if None in pair else pair[0] if pair[0] == pair[1] else VARIES for pair in both)
    constants = (tensor for tensor in tensors if isinstance(tensor, gs.Constant))
    return shapes | {tensor.name: tuple(tensor.shape) for tensor in constants}


def _at_size(proto: onnx.ModelProto, batch: int, sequence: int) -> dict[str, tuple[int | None, ...]]:
    """Shapes with inputs [batch, sequence], or [batch, 2, sequence]."""
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, (batch, *(2,) * (len(dims) - 2), sequence), strict=len(dims) > 1):
            dim.dim_value = size
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {value.name: _sizes(value) for value in values if value.type.tensor_type.HasField("shape")}


def _sizes(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)


def is_tokens(shape: Shape | None) -> bool:
    """True for [batch, sequence, ...]."""
    return shape is not None and shape[:2] == (VARIES, VARIES)


def is_columns(shape: Shape | None) -> bool:
    """True for [1, sequence, ...]: the same for every text, as positions are."""
    return shape is not None and shape[:2] == (1, VARIES)


def stored(tensor: gs.Tensor) -> bool:
    """True for a constant, dequantized or not."""
    if isinstance(tensor, gs.Constant):
        return True
    producer = tensor.inputs[0] if tensor.inputs else None
    return producer is not None and producer.op == DEQUANTIZE and isinstance(producer.inputs[0], gs.Constant)


@dataclass
class TokenWork:
    """The nodes to run on packed tokens: every linear over tokens and all that can join it."""

    graph: gs.Graph
    shapes: Shapes
    nodes: dict[int, gs.Node] = field(default_factory=dict)  # by id
    made: set[int] = field(default_factory=set)  # ids of the tensors they make

    def __post_init__(self) -> None:
        """Start from the linears, then take in who reads them, then who feeds only them."""
        ordered = list(self.graph.nodes)
        for node in ordered:
            linear = node.op == "MatMul" and stored(node.inputs[1])
            if (linear or any(id(tensor) in self.made for tensor in node.inputs)) and self._can_join(node):
                self._join(node)
        for node in reversed(ordered):
            if id(node) not in self.nodes and self._feeds_only_these(node) and self._can_join(node):
                self._join(node)

    def fed(self, node: gs.Node) -> Iterator[int]:
        """Places of a node's inputs that are token-wise, or the same for every text, and made outside."""
        for place, tensor in enumerate(node.inputs):
            shape = self.shapes.get(tensor.name)
            if not stored(tensor) and id(tensor) not in self.made and (is_tokens(shape) or is_columns(shape)):
                yield place

    def leaving(self) -> Iterator[tuple[gs.Tensor, gs.Node]]:
        """Tensors made inside with each node outside that reads them."""
        for node in self.nodes.values():
            for tensor in node.outputs:
                yield from ((tensor, reader) for reader in tensor.outputs if id(reader) not in self.nodes)

    def _join(self, node: gs.Node) -> None:
        self.nodes[id(node)] = node
        self.made.update(id(tensor) for tensor in node.outputs)

    def _can_join(self, node: gs.Node) -> bool:
        rule = RULES.get(node.op)
        if rule is None or not all(is_tokens(self.shapes.get(tensor.name)) for tensor in node.outputs):
            return False
        # A masked sum or maximum over the tokens is taken outside, with its mask, which erases padding.
        readers = [reader for tensor in node.outputs for reader in tensor.outputs]
        return rule(self.shapes, node) and not any(reader.op in POOLS for reader in readers)

    def _feeds_only_these(self, node: gs.Node) -> bool:
        readers = [reader for tensor in node.outputs for reader in tensor.outputs]
        leaves = any(tensor is output for tensor in node.outputs for output in self.graph.outputs)
        return bool(readers) and not leaves and all(id(reader) in self.nodes for reader in readers)


POOLS: Mapping[str, str] = {"ReduceSum": "Mul", "ReduceMax": "Add"}  # and what applies the mask in front of each


def _elementwise(shapes: Shapes, node: gs.Node) -> bool:
    """Every operand is token-wise of the same rank, or is broadcast along both token axes."""
    rank = len(shapes[node.outputs[0].name])
    for tensor in node.inputs:
        shape = () if tensor.is_empty() else shapes.get(tensor.name)
        if shape is None:
            return False
        token_axes = shape[: max(0, len(shape) - (rank - 2))]
        if not (is_tokens(shape) or is_columns(shape)) and any(size != 1 for size in token_axes):
            return False
        if (is_tokens(shape) or is_columns(shape)) and len(shape) != rank:
            return False
    return True


def _along_last(shapes: Shapes, node: gs.Node) -> bool:
    rank = len(shapes[node.outputs[0].name])
    return rank > 2 and node.attrs.get("axis", -1) in (-1, rank - 1)


def _matmul(shapes: Shapes, node: gs.Node) -> bool:
    weight = shapes.get(node.inputs[1].name) or ()
    return stored(node.inputs[1]) and len(weight) == 2 and len(shapes[node.outputs[0].name]) == 3


def _look_up(shapes: Shapes, node: gs.Node) -> bool:
    """Rows of a table by token, or a fixed selection behind the token axes."""
    data, index = node.inputs
    axis, rank = node.attrs.get("axis", 0), len(shapes.get(data.name) or ())
    if stored(data):
        return axis == 0 and is_tokens(shapes.get(index.name))
    return isinstance(index, gs.Constant) and axis % max(rank, 1) > 1


def _pair(shapes: Shapes, node: gs.Node) -> bool:
    return all(isinstance(tensor, gs.Constant) and tensor.values.ndim == 0 for tensor in node.inputs[1:])


def _behind(shapes: Shapes, node: gs.Node) -> bool:
    """Axes that come, go or are split behind the token axes."""
    rank = max(len(shapes.get(tensor.name) or ()) for tensor in (node.inputs[0], *node.outputs))
    if node.op == "Split":
        return bool(node.attrs.get("axis", 0) % rank > 1)
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    return isinstance(axes, gs.Constant) and all(axis % rank > 1 for axis in np.atleast_1d(axes.values))


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE | LOGIC, _elementwise),
    "LayerNormalization": _along_last,
    **dict.fromkeys(PAIR, _pair),
    "MatMul": _matmul,
    "Gather": _look_up,
    **dict.fromkeys(("Split", "Squeeze", "Unsqueeze"), _behind),
}
