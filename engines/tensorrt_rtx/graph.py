"""Products and attentions of an ONNX graph of any tool, under the names that the compiler gives its nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qdq.errors import BuildError

if TYPE_CHECKING:
    from onnx import NodeProto

# Encoder layers as exporters name them: encoder.layer.3., /layers.3/, layer_3, albert_layer_groups.0., h.3., blocks/3/
LAYER = re.compile(
    r"(?:^|[._/])(?:layers?|albert_layer_groups)[._/](\d+)(?:[._/]|$)|(?:^|[./])(?:h|blocks?)[./](\d+)(?:[./]|$)"
    r"|(?:^|[._/])layer_(\d+)(?:[._/]|$)"
)
PRODUCTS = ("MatMul", "Gemm")
LAYOUT = ("Transpose", "Reshape", "Cast", "Identity", "Squeeze", "Unsqueeze", "Gather", "Split", "Slice", "Flatten")
# Between the two products of an attention: scaling, mask, normalization, quantization.
INSIDE = ("Add", "Mul", "Div", "Sub", "Where", "Cast", "QuantizeLinear", "DequantizeLinear", "Dropout", "Identity")
BETWEEN = (
    "QuantizeLinear",
    "DequantizeLinear",
    "Mul",
    "Div",
    "Cast",
    "Identity",
    "Reshape",
)  # a layer's input, its linears
REACH = 8  # nodes followed between a Softmax and either product
SMALL = 1 << 16  # elements of a scale that may lie outside the file


@dataclass(frozen=True)
class Linear:
    """A product with a constant. `scale`: what one unit of its INT32 sums is worth, None without one such number."""

    name: str
    activation: NodeProto | None  # the DequantizeLinear each operand comes from
    weight: NodeProto | None
    scale: float | None


@dataclass(frozen=True)
class Attention:
    """The two products around a Softmax, or one Attention node, which is then all three."""

    name: str
    scores: str
    context: str


class Graph:
    """An ONNX file, indexed. External data is read for scales only."""

    def __init__(self, path: Path) -> None:
        import onnx
        from google.protobuf.message import DecodeError

        try:
            self.graph = onnx.load(path, load_external_data=False).graph
        except (OSError, DecodeError) as error:
            raise BuildError(f"{path}: cannot be read as ONNX ({error}); export it again") from error
        self.path = path
        self.stored = {item.name: item for item in self.graph.initializer}
        self.made = {output: node for node in self.graph.node for output in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        self.constants = set(self.stored) - {item.name for item in self.graph.input}
        for node in self.graph.node:
            for tensor in node.input:
                self.readers.setdefault(tensor, []).append(node)
            if all(not tensor or tensor in self.constants for tensor in node.input):
                self.constants.update(node.output)

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """Every product of a computed tensor with a constant, in graph order."""
        found = []
        for node in self.graph.node:
            constant = [tensor in self.constants for tensor in node.input[:2]]
            if node.op_type in PRODUCTS and sum(constant) == 1:
                weight, activation = (self.dequantizer(node.input[constant.index(which)]) for which in (True, False))
                found.append(Linear(label(node), activation, weight, self._scale(activation, weight)))
        return tuple(found)

    @cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """Every Softmax between two products of computed tensors, and every Attention node, in graph order."""
        found = []
        for node in self.graph.node:
            if node.op_type == "Attention":
                found.append(Attention(label(node), label(node), label(node)))
            elif node.op_type == "Softmax":
                scores = next(self._products(node.input[0], backwards=True), None)
                context = next(self._products(node.output[0], backwards=False), None)
                if scores is not None and context is not None:
                    found.append(Attention(label(node), label(scores), label(context)))
        return tuple(found)

    @cached_property
    def layers(self) -> dict[str, int]:
        """Encoder layer of every node that is in one, by its label: by the nodes' names where these number the layers.

        Where they do not (nodes without names, ALBERT's one layer that runs many times), a layer begins behind the
        tensor that its attention's linears read and ends where the next one begins, the last with the graph.
        """
        named = {name: number for name in self.operators if (number := layer_number(name)) is not None}
        numbers = [named.get(attention.scores) for attention in self.attentions]
        if None not in numbers and len(set(numbers)) == len(numbers):
            return named
        starts = [self._behind(self._layer_input(attention)) for attention in self.attentions]
        return {
            label(node): sum(id(node) in behind for behind in starts) - 1
            for node in self.graph.node
            if id(node) in starts[0]
        }

    @cached_property
    def operators(self) -> dict[str, str]:
        """Operator of every node by its label."""
        return {label(node): node.op_type for node in self.graph.node}

    @cached_property
    def quantizers(self) -> dict[str, float]:
        """Scale of every QuantizeLinear that has one number, by its label."""
        scales = {
            label(node): self.number(node.input[1]) for node in self.graph.node if node.op_type == "QuantizeLinear"
        }
        return {name: scale for name, scale in scales.items() if scale is not None}

    def number(self, tensor: str) -> float | None:
        """Value of a constant whose elements are all the same, None for any other tensor."""
        array = self._array(tensor)
        if array is None or array.size == 0 or not np.all(array == array.flat[0]):
            return None
        return float(array.flat[0])

    def dequantizer(self, tensor: str) -> NodeProto | None:
        """The DequantizeLinear whose values `tensor` carries, seen through layout nodes; None for a float tensor."""
        node = self.made.get(tensor)
        while node is not None and node.op_type in LAYOUT:
            node = self.made.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def _layer_input(self, attention: Attention) -> str:
        """The tensor that the linear of an attention's key reads, in front of its quantizer."""
        tensor = str(next(node for node in self.graph.node if label(node) == attention.scores).input[1])
        linear = self.made.get(tensor)
        while linear is not None and linear.op_type not in PRODUCTS:
            tensor = self._computed(linear)
            linear = self.made.get(tensor)
        tensor = self._computed(linear) if linear is not None else tensor
        while (node := self.made.get(tensor)) is not None and node.op_type in BETWEEN:
            tensor = self._computed(node)
        return tensor

    def _computed(self, node: NodeProto) -> str:
        """The first input of a node that is no constant; "" for none."""
        return next((str(name) for name in node.input if name not in self.constants), "")

    def _behind(self, tensor: str) -> set[int]:
        """Identities of the nodes that depend on `tensor`."""
        tensors, nodes = {tensor}, set()
        for node in self.graph.node:  # sorted: a node comes behind what it reads
            if not tensors.isdisjoint(node.input):
                tensors.update(node.output)
                nodes.add(id(node))
        return nodes

    def _scale(self, activation: NodeProto | None, weight: NodeProto | None) -> float | None:
        """Activation scale times weight scale, None unless each is one number."""
        if activation is None or weight is None:
            return None
        left, right = self.number(activation.input[1]), self.number(weight.input[1])
        return None if left is None or right is None else left * right

    def _products(self, tensor: str, backwards: bool) -> Iterator[NodeProto]:
        """Products of two computed tensors near `tensor`, through nothing but what an attention has inside."""
        front = [tensor]
        for _ in range(REACH):
            nodes = []
            for name in front:
                nodes += [self.made[name]] if backwards and name in self.made else []
                nodes += [] if backwards else self.readers.get(name, [])
            front = []
            for node in nodes:
                if node.op_type == "MatMul":
                    if not any(name in self.constants for name in node.input[:2]):
                        yield node
                elif node.op_type in (*INSIDE, *LAYOUT):
                    front += [name for name in (node.input if backwards else node.output) if name not in self.constants]

    def _array(self, tensor: str) -> NDArray[Any] | None:
        """Values of an initializer or Constant, also behind Cast and Identity; None for anything else."""
        from onnx import helper, numpy_helper

        node = self.made.get(tensor)
        if node is None:
            return self._stored(tensor)
        if node.op_type == "Constant":
            value = next((item.t for item in node.attribute if item.name == "value"), None)
            return None if value is None else numpy_helper.to_array(value)
        if node.op_type not in ("Cast", "Identity"):
            return None
        array = self._array(node.input[0])
        if array is None or node.op_type == "Identity":
            return array
        return array.astype(
            helper.tensor_dtype_to_np_dtype(next(item.i for item in node.attribute if item.name == "to"))
        )

    def _stored(self, tensor: str) -> NDArray[Any] | None:
        """Values of an initializer, None for anything else and for large external data."""
        from onnx import TensorProto, checker, numpy_helper

        stored = self.stored.get(tensor)
        if stored is None or tensor not in self.constants:
            return None
        if stored.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(stored)
        if np.prod(stored.dims, dtype=np.int64) > SMALL:
            return None
        try:
            return numpy_helper.to_array(stored, base_dir=str(self.path.parent))
        except (OSError, ValueError, checker.ValidationError) as error:
            raise BuildError(
                f"{self.path}: the external data of '{tensor}' cannot be read ({error}); copy it beside the file"
            ) from error


def label(node: NodeProto) -> str:
    """A node's name, or the one that NVIDIA's parser gives it."""
    return node.name or f"node_of_{node.output[0]}"


def layer_number(name: str) -> int | None:
    """Encoder layer that a node's name places it in, None for none."""
    found = LAYER.search(name)
    return None if found is None else int(next(number for number in found.groups() if number is not None))
