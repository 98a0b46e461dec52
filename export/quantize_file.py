"""Post-training quantization of a float ONNX graph: its linears found, then written with Q/DQ pairs around them.

For graphs that did not come from `export_onnx`, which has its quantizers in the module. A linear is a MatMul or Gemm
whose second operand is a two-dimensional initializer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.names import DEQUANTIZE, PAIR, QUANTIZE
from export.reading import attribute, standard_opset
from qdq.errors import ExportError

OLDEST_OPSET = 13  # QuantizeLinear's axis


@dataclass(frozen=True)
class FileLinear:
    """A linear of a float graph."""

    node: str  # its name
    activation: str  # the tensor it reads
    weight: str  # name of the initializer
    axis: int  # the output channels' dimension of the weight: 1 for MatMul and Gemm, 0 for Gemm with transB


def find_linears(model: ModelProto) -> list[FileLinear]:
    """Every linear in graph order. Raises ExportError for a graph without any, or one that is quantized or too old."""
    opset = standard_opset(model)
    if opset < OLDEST_OPSET:
        raise ExportError(f"the graph has opset {opset}; export it again with {OLDEST_OPSET} or newer")
    if any(node.op_type in PAIR for node in model.graph.node):
        raise ExportError("the graph has QuantizeLinear nodes already; give the floating-point graph")
    weights = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    found = []
    for index, node in enumerate(model.graph.node):
        if node.op_type not in ("MatMul", "Gemm") or weights.get(node.input[1]) != 2 or node.input[0] in weights:
            continue
        name = node.name or f"{node.op_type}_{index}"
        found.append(FileLinear(name, node.input[0], node.input[1], 0 if attribute(node, "transB") else 1))
    if not found:
        raise ExportError("the graph has no MatMul or Gemm with a constant weight; there is nothing to quantize")
    return found


def weight_of(model: ModelProto, linear: FileLinear) -> NDArray[np.float32]:
    """The weight of a linear as it is stored."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == linear.weight)
    return numpy_helper.to_array(tensor).astype(np.float32)


def quantize_linears(
    model: ModelProto,
    linears: list[FileLinear],
    activations: Mapping[str, float],
    weights: Mapping[str, NDArray[np.float32]],
) -> ModelProto:
    """A copy of `model` with every linear between Q/DQ pairs: symmetric INT8, zero-point 0, INT8 weight initializers.

    Args:
        linears: the ones to quantize; weights shared by several are stored once.
        activations: tensor name to scale.
        weights: initializer name to scale, one value or one per output channel.
    """
    made = ModelProto()
    made.CopyFrom(model)
    # Codes of the weights and the Q/DQ pair of every tensor the linears read, each pair made once.
    graph, zero = made.graph, "qdq.zero"
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.int8), zero))
    axes = {linear.weight: linear.axis for linear in linears}
    nodes = [_dequantized_weight(graph, name, scales, axes[name]) for name, scales in weights.items()][::-1]
    inputs = dict.fromkeys(linear.activation for linear in linears)
    pairs = {tensor: _pair(graph, tensor, activations[tensor], zero) for tensor in inputs}
    # Each pair goes right behind the node that makes its tensor, those of graph inputs first.
    computed = {output for node in graph.node for output in node.output}
    nodes[:0] = [node for tensor, pair in pairs.items() if tensor not in computed for node in pair]
    operands = {(linear.activation, linear.weight) for linear in linears}
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm") and tuple(node.input[:2]) in operands:
            node.input[0], node.input[1] = (f"{tensor}.dequantized" for tensor in node.input[:2])
        nodes.append(node)
        nodes += (inserted for output in node.output for inserted in pairs.get(output, ()))
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph, set(weights))
    return made


def _dequantized_weight(graph: GraphProto, name: str, scales: NDArray[np.float32], axis: int) -> NodeProto:
    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor).astype(np.float32)
    shaped = scales.reshape((-1, 1) if axis == 0 else (1, -1)) if scales.size > 1 else scales.reshape(())
    codes = np.clip(np.round(array / shaped), -128, 127).astype(np.int8)
    flat = scales.reshape(-1) if scales.size > 1 else scales.reshape(())
    graph.initializer.extend(
        [
            numpy_helper.from_array(codes, f"{name}.codes"),
            numpy_helper.from_array(flat.astype(np.float32), f"{name}.scale"),
            numpy_helper.from_array(np.zeros(flat.shape, np.int8), f"{name}.zero"),
        ]
    )
    inputs = [f"{name}.codes", f"{name}.scale", f"{name}.zero"]
    node = helper.make_node(DEQUANTIZE, inputs, [f"{name}.dequantized"], f"{name}.{DEQUANTIZE}")
    if scales.size > 1:
        node.attribute.append(helper.make_attribute("axis", axis))
    return node


def _pair(graph: GraphProto, tensor: str, scale: float, zero: str) -> tuple[NodeProto, NodeProto]:
    graph.initializer.append(helper.make_tensor(f"{tensor}.scale", TensorProto.FLOAT, [], [scale]))
    codes, back = f"{tensor}.codes", f"{tensor}.dequantized"
    return (
        helper.make_node(QUANTIZE, [tensor, f"{tensor}.scale", zero], [codes], f"{tensor}.{QUANTIZE}"),
        helper.make_node(DEQUANTIZE, [codes, f"{tensor}.scale", zero], [back], f"{tensor}.{DEQUANTIZE}"),
    )


def _drop_unused(graph: GraphProto, names: set[str]) -> None:
    """Remove float weights nothing reads any more."""
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for position in reversed(range(len(graph.initializer))):
        if graph.initializer[position].name in names - read:
            del graph.initializer[position]
