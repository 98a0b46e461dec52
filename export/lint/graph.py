"""A graph as TensorRT's parser sees it: types, shapes, constant values, and paths through ops that only move data.

A file that is no graph at all is refused: nodes without the inputs they need, cycles, tensors without all their data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from export.inventory import LAYOUT, GraphIndex
from export.names import DEQUANTIZE, PAIR, QUANTIZE
from export.reading import FLOATS, attribute, label, standard_opset
from qdq.errors import ExportError

# Ops that commute with Q and DQ (`Q(op(x)) == op(Q(x))`): TensorRT moves a Q backward and a DQ forward through them.
MOVES = LAYOUT - {"Cast"} | {"Dropout", "Expand", "Gather", "Slice", "Split"}

BOOKKEEPING = frozenset({"Shape", "Size"})  # read a tensor without reading its values
LARGE = 1 << 17  # elements; larger initializers are weights, whose values no rule reads

HALF_SCALES = 19  # first opset whose QuantizeLinear and DequantizeLinear take FP16 and BF16 scales

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Operand:
    """One input of a node: the DQ whose values it carries (None: float) and the casts on the way from it."""

    dequantize: NodeProto | None
    casts: tuple[NodeProto, ...]

    @property
    def quantized(self) -> bool:
        """True when a DQ feeds it; a cast on the way still spoils the fusion."""
        return self.dequantize is not None


class LintGraph:
    """Read-only view of a model for rules and patterns. Nodes are known by their first output, not by their name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = without_weights(model)
        self.nodes: tuple[NodeProto, ...] = tuple(self.model.graph.node)
        self.index = GraphIndex(self.model.graph)
        self.order = {node.output[0]: position for position, node in enumerate(self.nodes)}
        self.outputs = {value.name for value in self.model.graph.output}
        self.opset = standard_opset(self.model)
        self.types, self.shapes = _types_and_shapes(self.model, self.nodes)

    @property
    def pairs(self) -> Iterator[NodeProto]:
        """QuantizeLinear and DequantizeLinear nodes that have a scale, in order."""
        return (node for node in self.nodes if node.op_type in PAIR and len(node.input) > 1)

    def producer(self, tensor: str) -> NodeProto | None:
        """The node that makes `tensor`; None for graph inputs and initializers."""
        return self.index.producers.get(tensor)

    def constant(self, tensor: str) -> bool:
        """Return whether `tensor` depends on no graph input."""
        return self.index.is_constant(tensor)

    def float_type(self, tensor: str) -> str:
        """Return fp32, fp16 or bf16; fp32 for a tensor whose type nothing states."""
        return FLOATS.get(int(self.types.get(tensor, TensorProto.FLOAT)), "fp32")

    def value(self, tensor: str) -> NDArray[Any] | None:
        """Value of an initializer, a Constant, or either behind Cast, Identity and reshaping; else None."""
        node = self.producer(tensor)
        while node is not None and node.op_type in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
            tensor = node.input[0]
            node = self.producer(tensor)
        if node is not None:
            return constant_value(node)
        initializer = self.index.initializers.get(tensor)
        if initializer is None or not holds_data(initializer):
            return None
        return onnx.numpy_helper.to_array(initializer)

    def moves(self, node: NodeProto) -> bool:
        """Return whether a node only moves values: it commutes with Q and DQ, or casts to the type at hand."""
        if node.op_type == "Cast":
            return self.types.get(node.input[0]) == self.types.get(node.output[0])
        embeds = node.op_type == "Gather" and self.constant(node.input[0]) and not self.constant(node.output[0])
        return node.op_type in MOVES and not embeds

    def operand(self, tensor: str) -> Operand:
        """Look back from `tensor` through moving ops and casts for a DequantizeLinear."""
        node, casts = self.producer(tensor), []
        while node is not None and (self.moves(node) or node.op_type == "Cast"):
            if not self.moves(node):
                casts.append(node)
            node = self.producer(node.input[0])
        found = node if node is not None and node.op_type == DEQUANTIZE else None
        return Operand(found, tuple(casts))

    def origin(self, tensor: str) -> str:
        """The tensor that `tensor` is a moved copy of."""
        node = self.producer(tensor)
        while node is not None and self.moves(node):
            tensor = node.input[0]
            node = self.producer(tensor)
        return tensor

    def readers(self, tensor: str) -> list[NodeProto]:
        """Nodes that read the values of `tensor` directly."""
        return [node for node in self.index.readers.get(tensor, []) if node.op_type not in BOOKKEEPING]

    def consumers(self, tensor: str) -> list[NodeProto]:
        """Nodes that read the values of `tensor`, directly or moved; each of them once."""
        found: dict[str, NodeProto] = {}
        pending = [tensor]
        while pending:
            for node in self.readers(pending.pop()):
                if self.moves(node) and not self.is_output(node):
                    pending.extend(node.output)
                else:
                    found.setdefault(node.output[0], node)
        return list(found.values())

    def is_output(self, node: NodeProto) -> bool:
        """Return whether a result of this node is an output of the graph."""
        return not self.outputs.isdisjoint(node.output)

    def computed_inputs(self, node: NodeProto) -> list[str]:
        """Inputs that depend on a graph input."""
        return [tensor for tensor in node.input if tensor and not self.constant(tensor)]

    def size(self, tensor: str) -> int | None:
        """Number of elements; None when unknown."""
        shape = self.shapes.get(tensor)
        if shape is None or any(dim is None for dim in shape):
            value = self.value(tensor)
            return None if value is None else int(value.size)
        return int(np.prod([dim for dim in shape if dim is not None], dtype=np.int64))


def constant_value(node: NodeProto) -> NDArray[Any] | None:
    """Value of a Constant node; None for any other node."""
    if node.op_type != "Constant":
        return None
    for item in node.attribute:
        value = onnx.helper.get_attribute_value(item)
        if item.name == "value":
            return onnx.numpy_helper.to_array(value)
        if item.name.startswith("value_float"):
            return np.asarray(value, np.float32)
        if item.name.startswith("value_int"):
            return np.asarray(value, np.int64)
    return None


def holds_data(tensor: TensorProto) -> bool:
    """Return whether a tensor's values are at hand: not dropped, not in another file."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return False
    fields = (tensor.raw_data, tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data)
    return any(len(field) > 0 for field in fields)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large initializers have a type and a shape but no data, with model-local functions inlined.

    Initializers that are also graph inputs (IR 3) stop being inputs: TensorRT's parser takes them as weights. Raises
    ExportError for what is no valid graph.
    """
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    names = {tensor.name for tensor in model.graph.initializer}
    light.graph.name = model.graph.name
    light.graph.node.extend(ordered(model.graph, standard_opset(model)))
    light.graph.input.extend(value for value in model.graph.input if value.name not in names)
    light.graph.output.extend(model.graph.output)
    light.graph.value_info.extend(model.graph.value_info)
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims, dtype=np.int64) > LARGE:
            tensor = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        light.graph.initializer.append(tensor)
    check_tensors([tensor for tensor in light.graph.initializer if holds_data(tensor)])
    return onnx.inliner.inline_local_functions(light) if light.functions else light


def _types_and_shapes(model: onnx.ModelProto, nodes: tuple[NodeProto, ...]) -> tuple[dict[str, int], dict[str, Shape]]:
    """Element types and shapes of all tensors, as far as they are stated or can be inferred."""
    try:
        graph = onnx.shape_inference.infer_shapes(_half_typed(model), data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError):
        graph = model.graph  # an invalid graph is linted with what it states
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor_type = value.type.tensor_type
        if tensor_type.elem_type:
            types[value.name] = tensor_type.elem_type
        if tensor_type.HasField("shape"):
            shapes[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else None for dim in tensor_type.shape.dim
            )
    for node in nodes:
        for output in node.output:
            types.setdefault(output, _guessed_type(node, types))
    return types, shapes


def _half_typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model for inference: DQ with a half scale before opset 19, which ONNX says makes FP32, as a Cast to its type.

    TensorRT's DequantizeLinear makes the type of its scale whatever the opset. The model itself where there is none.
    """
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

    def early(node: NodeProto) -> bool:
        return node.op_type == DEQUANTIZE and len(node.input) > 1 and kinds.get(node.input[1]) in halves

    if standard_opset(model) >= HALF_SCALES or not any(early(node) for node in model.graph.node):
        return model
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    for node in edited.graph.node:
        if early(node):
            kind = kinds[node.input[1]]
            node.CopyFrom(onnx.helper.make_node("Cast", node.input[:1], node.output, node.name, to=kind))
    return edited


def _guessed_type(node: NodeProto, types: dict[str, int]) -> int:
    """Type of an output that inference left open (behind an op of a foreign domain, say)."""
    if node.op_type == "Cast":
        return int(attribute(node, "to", TensorProto.UNDEFINED))
    if node.op_type == "Constant":
        value = constant_value(node)
        return TensorProto.UNDEFINED if value is None else int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
    position = {DEQUANTIZE: 1, QUANTIZE: 2}.get(node.op_type, 0)
    if position >= len(node.input):
        return TensorProto.UINT8 if node.op_type == QUANTIZE else TensorProto.UNDEFINED
    return types.get(node.input[position], TensorProto.UNDEFINED)


def ordered(graph: onnx.GraphProto, opset: int) -> list[NodeProto]:
    """Sort the nodes with results, producers before readers; nodes that are in order already keep their place.

    ONNX asks for this order, TensorRT's parser makes it itself, and not every tool writes it. Raises ExportError for a
    tensor that nothing makes, for a cycle and for a node without the inputs its op needs.
    """
    nodes = [node for node in graph.node if any(node.output)]
    made = {output for node in nodes for output in node.output}
    known = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input} | {""}
    available = made | known
    for node in nodes:
        _check_inputs(node, available, opset)
    result: list[NodeProto] = []
    while nodes:  # take what can run, keep the rest for the next round; a round that takes nothing is a cycle
        waiting = []
        for node in nodes:
            if known.issuperset(node.input):
                known.update(node.output)
                result.append(node)
            else:
                waiting.append(node)
        if len(waiting) == len(nodes):
            raise ExportError(
                f"{label(nodes[0])}: reads its own result in a cycle; not a valid ONNX graph, export again"
            )
        nodes = waiting
    return result


def _check_inputs(node: NodeProto, available: set[str], opset: int) -> None:
    absent = [tensor for tensor in node.input if tensor not in available]
    if absent:
        raise ExportError(
            f"{label(node)}: reads '{absent[0]}', which nothing makes; not a valid ONNX graph, export again"
        )
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, opset, ""):
        return
    needed = onnx.defs.get_schema(node.op_type, opset, "").min_input
    if len(node.input) < needed or "" in node.input[:needed]:
        raise ExportError(f"{label(node)}: {node.op_type} needs {needed} inputs; not a valid ONNX graph, export again")


def check_tensors(tensors: Sequence[TensorProto]) -> None:
    """Raise ExportError naming a tensor whose data does not fill its shape; tensors without data pass."""
    for tensor in tensors:
        try:
            onnx.numpy_helper.to_array(tensor)
        except (TypeError, ValueError) as error:
            raise ExportError(f"initializer '{tensor.name}': {error}; the file is damaged, export it again") from error
