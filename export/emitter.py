"""The ONNX graph that a recording becomes: its nodes, constants and sizes as they are added, and its cleaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes

from export.names import OPSET
from export.record import SIZES, Call, Constant, Recording, Ref, Result, Size, Unrecorded
from export.tidy import SCOPES, initializer

TYPES: Mapping[torch.dtype, ir.DataType] = {
    torch.float32: ir.DataType.FLOAT,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
    torch.int8: ir.DataType.INT8,
    torch.bool: ir.DataType.BOOL,
}


def clean(model: ir.Model) -> None:
    """Fold and merge, in place, what torch's exporter does: transposes, unread nodes, equal constants, equal nodes."""
    fold_transposes(model.graph)
    passes.RemoveUnusedNodesPass()(model)
    passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)


class Emitter:
    """The graph so far, and the value of every tensor of the recording."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="main")
        self.values: dict[int, ir.Value] = {}
        self.module = ""
        self._constants: dict[str, ir.Value] = {}
        self._sizes: dict[str, ir.Value] = {}
        for number, name in enumerate(recording.inputs):
            value = ir.Value(name=name)
            _describe(value, recording.tensors[number])
            self.values[number] = value
            self.graph.inputs.append(value)
        for name in SIZES:  # at the beginning, where torch's exporter has them
            self._measure(name)

    def made(self, call: Call, values: ir.Value | tuple[ir.Value, ...]) -> None:
        """Take `values` for the results of `call`."""
        for number, value in zip(call.results, values if isinstance(values, tuple) else (values,), strict=True):
            if value.producer() is not None:
                _describe(value, self.recording.tensors[number])
            self.values[number] = value

    def node(self, op: str, *inputs: ir.Value | None, like: Result | None = None, **attributes: Any) -> ir.Value:
        """Add a node with one output; `like` describes one that is no tensor of the recording."""
        node = ir.node(op, inputs, {name: value for name, value in attributes.items() if value is not None})
        (output,) = self.add(node)
        if like is not None:
            _describe(output, like)
        return output

    def add(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Add a node of the module at work; its outputs."""
        node.metadata_props[SCOPES] = repr(["", self.module, node.op_type])
        self.graph.append(node)
        return tuple(node.outputs)

    def about(self, argument: Any) -> Result:
        """Shape and type of a tensor argument."""
        if isinstance(argument, Ref):
            return self.recording.tensors[argument.number]
        if isinstance(argument, Constant):
            return Result(tuple(argument.tensor.shape), argument.tensor.dtype)
        raise Unrecorded(f"{self.module} gives {argument} for a tensor")

    def value(self, argument: Any, beside: Any = None) -> ir.Value:
        """A tensor argument, or a number as a scalar of the type that `beside` has."""
        if isinstance(argument, Ref):
            return self.values[argument.number]
        if isinstance(argument, Constant):
            array = argument.tensor.detach().numpy()
            return self.constant(array, argument.name)
        if isinstance(argument, bool | int | float) and beside is not None:
            return self.constant(np.array(argument, dtype=str(self.about(beside).dtype).removeprefix("torch.")))
        raise Unrecorded(f"{self.module} gives {argument} for a tensor")

    def constant(self, array: np.ndarray, name: str | None = None) -> ir.Value:
        """An initializer; one of a parameter or buffer has its name."""
        name = name or f"constant_{len(self._constants)}"
        if name not in self._constants:
            self._constants[name] = initializer(self.graph, name, array)
        return self._constants[name]

    def integers(self, *numbers: int) -> ir.Value:
        """An INT64 vector."""
        return self.constant(np.array(numbers, np.int64))

    def _measure(self, name: str) -> None:
        """Add the node that takes the dimension `name` of the last input, as torch's exporter does."""
        number = len(self.recording.inputs) - 1
        shape = self.recording.tensors[number].shape
        if Size((name,)) in shape:
            axis = shape.index(Size((name,)))
            size = self.node("Shape", self.values[number], start=axis, end=axis + 1, like=Result((1,), torch.int64))
            self._sizes[name] = size

    def size(self, dimension: int | Size) -> ir.Value:
        """A dimension as an INT64 vector of one element."""
        if isinstance(dimension, int):
            return self.integers(dimension)
        product = self._sizes[dimension.names[0]]
        for name in dimension.names[1:]:
            product = self.node("Mul", product, self._sizes[name], like=Result((1,), torch.int64))
        return product

    def scalar(self, dimension: int | Size) -> ir.Value:
        """A dimension as an INT64 scalar."""
        if isinstance(dimension, int):
            return self.constant(np.array(dimension, np.int64))
        return self.node("Squeeze", self.size(dimension), like=Result((), torch.int64))

    def sizes(self, shape: Sequence[int | Size]) -> ir.Value:
        """A shape as an INT64 vector, constant where all of it is."""
        numbers = [dimension for dimension in shape if isinstance(dimension, int)]
        if len(numbers) == len(shape):
            return self.integers(*numbers)
        parts = [self.size(dimension) for dimension in shape]
        return (
            self.node("Concat", *parts, axis=0, like=Result((len(shape),), torch.int64)) if len(parts) > 1 else parts[0]
        )


Form = Callable[[Emitter, Call], "ir.Value | tuple[ir.Value, ...]"]


def _describe(value: ir.Value, result: Result) -> None:
    if result.dtype not in TYPES:
        raise Unrecorded(f"a tensor of {result.dtype}")
    value.type = ir.TensorType(TYPES[result.dtype])
    value.shape = ir.Shape([d if isinstance(d, int) else "*".join(d.names) for d in result.shape])


def fold_transposes(graph: ir.Graph) -> None:
    """Replace a Transpose of a constant by the transposed constant, and one of a Transpose by a single one."""
    folded: dict[tuple[str, tuple[int, ...]], ir.Value] = {}
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None:
            continue
        order, before = tuple(node.attributes["perm"].as_ints()), source.producer()
        if before is not None and before.op_type == "Transpose":
            inner = tuple(before.attributes["perm"].as_ints())
            node.attributes["perm"] = ir.AttrInt64s("perm", [inner[axis] for axis in order])
            node.replace_input_with(0, before.inputs[0])
        elif source.const_value is not None:
            key = str(source.name), order
            if key not in folded:
                array = np.ascontiguousarray(source.const_value.numpy().transpose(order))
                folded[key] = initializer(graph, f"transposed_{len(folded)}", array)
            ir.convenience.replace_all_uses_with(node.outputs[0], folded[key])
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
