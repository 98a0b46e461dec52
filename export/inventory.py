"""Inventory of a graph's multiplications by node name: encoder linears, attention matmuls and all others.

Works from the ONNX graph alone, so canonical, FP32 and lowered graphs are counted by one rule, and "36 of 36 encoder
linears run in INT8" means the same 36 for every target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from export.names import DEQUANTIZE, in_encoder, one_by_one

MULTIPLICATIONS = ("MatMul", "Gemm", "MatMulInteger")

# Between a DequantizeLinear and the operand it serves these only move or retype values.
LAYOUT = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


class GraphIndex:
    """Producers, readers and constants of a graph whose nodes are topologically sorted."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.nodes = {node.name: node for node in graph.node}
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {output: node for node in graph.node for output in node.output if output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for tensor in node.input:
                self.readers.setdefault(tensor, []).append(node)
        self._constants = set(self.initializers) - {value.name for value in graph.input}
        for node in graph.node:  # in order, not recursively: a deep encoder exceeds Python's recursion limit
            if all(not tensor or tensor in self._constants for tensor in node.input):
                self._constants.update(node.output)

    def is_constant(self, tensor: str) -> bool:
        """Return whether `tensor` depends on no graph input: an initializer, or one behind DQ, Transpose, Mul…."""
        return tensor in self._constants

    def dequantizer(self, tensor: str) -> onnx.NodeProto | None:
        """The DequantizeLinear whose values `tensor` carries, seen through layout ops; None for a float tensor."""
        return self.route(tensor)[1]

    def to_operand(self, node: onnx.NodeProto, operand: int) -> tuple[list[onnx.NodeProto], onnx.NodeProto | None]:
        """The route to an operand; to an Add's the skip may be divided by the smoothing of linears reading it."""
        return self.route(node.input[operand], factors=node.op_type == "Add")

    def route(self, tensor: str, factors: bool = False) -> tuple[list[onnx.NodeProto], onnx.NodeProto | None]:
        """The layout ops `tensor` comes through, the last one first, and the DequantizeLinear before them or None.

        With `factors` a Mul or Div by a constant counts as a layout op.
        """
        layout: list[onnx.NodeProto] = []
        node = self.producers.get(tensor)
        while node is not None and (node.op_type in LAYOUT or (factors and self._is_factor(node))):
            layout.append(node)
            node = self.producers.get(node.input[0])
        return layout, node if node is not None and node.op_type == DEQUANTIZE else None

    def _is_factor(self, node: onnx.NodeProto) -> bool:
        return node.op_type in ("Div", "Mul") and self.is_constant(node.input[1])


@dataclass(frozen=True)
class Inventory:
    """Names of every MatMul and Gemm of a graph, in graph order, as the canonical graph has them."""

    encoder_linear: tuple[str, ...]  # multiplications by a constant inside an encoder block, each one by itself
    attention_matmul: tuple[str, ...]  # multiplications of two computed tensors inside an encoder block
    other: Mapping[str, str]  # all others (pooler, task head, embedding projection…), name to reason
    quantized: Mapping[str, tuple[int, ...]]  # of every name above, the operands behind a DequantizeLinear; () is float
    computed_in: Mapping[str, str]  # of linears that lowering put together, the node that computes all of them


def inventory(model: onnx.ModelProto) -> Inventory:
    """Sort every MatMul and Gemm of `model` into the three groups. External data need not be loaded."""
    index = GraphIndex(model.graph)
    linears: list[str] = []
    matmuls: list[str] = []
    others: dict[str, str] = {}
    quantized: dict[str, tuple[int, ...]] = {}
    computed_in: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type not in MULTIPLICATIONS:
            continue
        # The linears of the checkpoint that the node computes, and what of its operands is quantized.
        names = one_by_one(node.name)
        int8 = [node.op_type == "MatMulInteger" or index.dequantizer(tensor) is not None for tensor in node.input[:2]]
        operands = tuple(position for position, found in enumerate(int8) if found)
        quantized |= dict.fromkeys(names, operands)
        # Two constants are folded, one makes a linear, none an attention's product.
        constants = sum(index.is_constant(tensor) for tensor in node.input[:2])
        if not in_encoder(node.name) or constants == 2:
            others |= {name: _reason(name, constants, operands) for name in names}
        elif constants:
            linears.extend(names)
            computed_in |= {name: node.name for name in names if name != node.name}
        else:
            matmuls.append(node.name)
    return Inventory(tuple(linears), tuple(matmuls), others, quantized, computed_in)


def reduction_sizes(model: onnx.ModelProto) -> tuple[int, ...]:
    """Number of products that each multiplication by an INT8 weight of `model` sums: rows of the MatMul weights."""
    index = GraphIndex(model.graph)
    found = []
    for node in model.graph.node:
        weight = index.dequantizer(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None and weight.input[0] in index.initializers:
            found.append(int(index.initializers[weight.input[0]].dims[0]))
    return tuple(found)


def _reason(name: str, constants: int, quantized: tuple[int, ...]) -> str:
    if constants == 2:
        return "product of two constants: constant folding removes it"
    if constants == 0:
        what = "product of two computed tensors"
    elif "pooler" in name:
        what = "pooler"
    else:
        what = "embedding projection" if "embed" in name else "task head"
    state = {(): "float in this graph", (0, 1): "quantized"}.get(quantized, "one operand float in this graph")
    return f"{what}, outside the encoder blocks; {state}"
