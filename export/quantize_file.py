"""Post-training quantization of a float ONNX graph: its multiplications found, then written with Q/DQ pairs around.

For graphs that did not come from `export_onnx`, which has its quantizers in the module. A linear is a MatMul or Gemm
whose second operand is a two-dimensional initializer; a product is a MatMul of two computed tensors with a softmax
behind or before it, as attention has them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.names import DEQUANTIZE, PAIR, QUANTIZE
from export.reading import attribute, standard_opset
from qdq.errors import ExportError

OLDEST_OPSET = 13  # QuantizeLinear's axis
NEARBY = 8  # nodes between an attention's product and its softmax, at most: scale, mask, casts, dropout


@dataclass(frozen=True)
class FileLinear:
    """A linear of a float graph."""

    node: str  # its name
    activation: str  # the tensor it reads
    weight: str  # name of the initializer
    axis: int  # the output channels' dimension of the weight: 1 for MatMul and Gemm, 0 for Gemm with transB


@dataclass(frozen=True)
class FileProduct:
    """An attention's product of a float graph: of query and key, or of probabilities and values."""

    node: str  # its name
    operands: tuple[tuple[str, str], tuple[str, str]]  # (q, k) or (a, v), each with the tensor that holds it


@dataclass(frozen=True)
class FileQuantization:
    """Everything that `quantize_graph` writes.

    Attributes:
        linears: the ones to quantize; weights shared by several are stored once.
        products: operands of products to quantize, by node name and position.
        activations: tensor name to scale.
        weights: initializer name to scale, one value or one per output channel.
        codes: initializer name to its INT8 codes in its own layout, where they are not the nearest ones.
        shifts: node name of a linear to what is added to each of its outputs.
    """

    linears: Sequence[FileLinear]
    activations: Mapping[str, float]
    weights: Mapping[str, NDArray[np.float32]]
    products: Collection[tuple[str, int]] = ()
    codes: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)
    shifts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


def name_nodes(model: ModelProto) -> None:
    """Give every multiplication without a name one of its own, in place: exporters need not name nodes."""
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if node.op_type in ("MatMul", "Gemm") and not node.name:
            name = f"{node.op_type}_{index}"
            node.name = name if name not in taken else f"{name}.{node.output[0]}"


def find_linears(model: ModelProto) -> list[FileLinear]:
    """Every linear in graph order. Raises ExportError for a graph without any, or one that is quantized or too old."""
    opset = standard_opset(model)
    if opset < OLDEST_OPSET:
        raise ExportError(f"the graph has opset {opset}; export it again with {OLDEST_OPSET} or newer")
    if any(node.op_type in PAIR for node in model.graph.node):
        raise ExportError("the graph has QuantizeLinear nodes already; give the floating-point graph")
    weights = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm") or weights.get(node.input[1]) != 2 or node.input[0] in weights:
            continue
        found.append(FileLinear(node.name, node.input[0], node.input[1], 0 if attribute(node, "transB") else 1))
    if not found:
        raise ExportError("the graph has no MatMul or Gemm with a constant weight; there is nothing to quantize")
    return found


def find_products(model: ModelProto) -> list[FileProduct]:
    """Every attention product in graph order: MatMuls of two computed tensors next to a softmax."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)
    found = []
    for node in graph.node:
        left, right = (*node.input, "", "")[:2]
        if node.op_type != "MatMul" or left not in makers or right not in makers or {left, right} & constants:
            continue
        if _near(node, lambda one: [makers[name] for name in one.input[:1] if name in makers]):
            found.append(FileProduct(node.name, (("a", left), ("v", right))))
        elif _near(node, lambda one: [reader for name in one.output for reader in readers.get(name, ())]):
            found.append(FileProduct(node.name, (("q", left), ("k", right))))
    return found


def _near(start: NodeProto, following: Callable[[NodeProto], list[NodeProto]]) -> bool:
    """True when a softmax lies a few nodes away, with no other multiplication of matrices between."""
    edge = following(start)
    for _ in range(NEARBY):
        if any(node.op_type == "Softmax" for node in edge):
            return True
        edge = [other for node in edge if node.op_type not in ("MatMul", "Gemm") for other in following(node)]
    return False


def weight_of(model: ModelProto, linear: FileLinear) -> NDArray[np.float32]:
    """The weight of a linear as it is stored."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == linear.weight)
    return numpy_helper.to_array(tensor).astype(np.float32)


def quantize_graph(model: ModelProto, plan: FileQuantization) -> ModelProto:
    """A copy of `model` with Q/DQ pairs as `plan` says: symmetric INT8, zero-point 0, INT8 weight initializers."""
    made = ModelProto()
    made.CopyFrom(model)
    # Codes of the weights and the Q/DQ pair of every tensor that is read quantized, each pair made once.
    graph, zero = made.graph, "qdq.zero"
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.int8), zero))
    axes = {linear.weight: linear.axis for linear in plan.linears}
    nodes = [_dequantized_weight(graph, name, plan, axes[name]) for name in plan.weights][::-1]
    linears = {linear.node: linear for linear in plan.linears}
    tensors = {node.name: node.input for node in graph.node if node.op_type == "MatMul"}
    inputs = dict.fromkeys(linear.activation for linear in plan.linears)
    inputs |= dict.fromkeys(tensors[name][position] for name, position in plan.products)
    pairs = {tensor: _pair(graph, tensor, plan.activations[tensor], zero) for tensor in inputs}
    # Each pair goes right behind the node that makes its tensor, those of graph inputs first.
    computed = {output for node in graph.node for output in node.output}
    nodes[:0] = [node for tensor, pair in pairs.items() if tensor not in computed for node in pair]
    for node in graph.node:
        for position in (0, 1):
            if node.name in linears or (node.name, position) in plan.products:
                node.input[position] = f"{node.input[position]}.dequantized"
        nodes.append(node)
        if node.name in plan.shifts:
            nodes.append(_shifted(graph, node, plan.shifts[node.name]))
        nodes += (inserted for output in nodes[-1].output for inserted in pairs.get(output, ()))
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph, set(plan.weights))
    return made


def _shifted(graph: GraphProto, node: NodeProto, shift: NDArray[np.float32]) -> NodeProto:
    """An Add behind a linear, whose output it takes the name of."""
    output = node.output[0]
    node.output[0] = f"{output}.unshifted"
    graph.initializer.append(numpy_helper.from_array(shift.astype(np.float32), f"{output}.shift"))
    return helper.make_node("Add", [node.output[0], f"{output}.shift"], [output], f"{node.name}.shift")


def _dequantized_weight(graph: GraphProto, name: str, plan: FileQuantization, axis: int) -> NodeProto:
    tensor, scales = next(tensor for tensor in graph.initializer if tensor.name == name), plan.weights[name]
    array = numpy_helper.to_array(tensor).astype(np.float32)
    shaped = scales.reshape((-1, 1) if axis == 0 else (1, -1)) if scales.size > 1 else scales.reshape(())
    codes = plan.codes.get(name)
    if codes is None:
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
