"""A graph to edit by node and tensor names: pairs put in and taken out, types and attributes changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper


class Graph:
    """A copy of a graph to edit by node and tensor names."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        del self.graph.value_info[:]  # stale after most edits

    def node(self, name: str) -> NodeProto:
        found: NodeProto = next(node for node in self.graph.node if node.name == name)
        return found

    def set(self, name: str, value: NDArray[Any]) -> str:
        """Add or replace an initializer."""
        for tensor in self.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(value, name))
                return name
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def value(self, name: str) -> NDArray[Any]:
        return numpy_helper.to_array(next(t for t in self.graph.initializer if t.name == name))

    def insert(self, before: str, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Insert a node in front of the node called `before`; returns its output."""
        position = [node.name for node in self.graph.node].index(before)
        domain = attributes.pop("domain", "")
        self.graph.node.insert(position, helper.make_node(op, inputs, [name], name, domain=domain, **attributes))
        return name

    def pair(self, tensor: str, before: str, name: str, scale: float = 0.05) -> str:
        """Insert Q and DQ on `tensor`; returns the dequantized tensor."""
        parameters = [
            self.set(f"{name}.scale", np.array(scale, np.float32)),
            self.set(f"{name}.zero", np.array(0, np.int8)),
        ]
        codes = self.insert(before, "QuantizeLinear", [tensor, *parameters], f"{name}.q")
        return self.insert(before, "DequantizeLinear", [codes, *parameters], f"{name}.dq")

    def requantize(self, node: str, operand: int, name: str, scale: float = 0.05) -> None:
        """Put a pair in front of one operand of a node."""
        reader = self.node(node)
        reader.input[operand] = self.pair(reader.input[operand], node, name, scale)

    def float_operand(self, node: str, operand: int) -> None:
        """Give one operand of a node the float tensor behind its pair, or a float weight."""
        reader = self.node(node)
        dequantize = self.maker(reader.input[operand])
        while dequantize.op_type != "DequantizeLinear":
            reader, operand = dequantize, 0
            dequantize = self.maker(reader.input[0])
        quantize = next((n for n in self.graph.node if dequantize.input[0] in n.output), None)
        if quantize is not None:
            reader.input[operand] = quantize.input[0]
        else:
            shape = self.value(dequantize.input[0]).shape
            reader.input[operand] = self.set(f"{node}.float", np.ones(shape, np.float32))

    def maker(self, tensor: str) -> NodeProto:
        found: NodeProto = next(node for node in self.graph.node if tensor in node.output)
        return found

    def attribute(self, node: str, name: str, value: Any) -> None:
        """Set an attribute, or remove it with None."""
        kept = [item for item in self.node(node).attribute if item.name != name]
        del self.node(node).attribute[:]
        self.node(node).attribute.extend(kept)
        if value is not None:
            self.node(node).attribute.append(helper.make_attribute(name, value))

    def run_time(self, before: str, dtype: int, name: str) -> str:
        """A scalar computed from the attention mask."""
        largest = self.insert(before, "ReduceMax", ["attention_mask"], f"{name}.max", keepdims=0)
        return self.insert(before, "Cast", [largest], name, to=dtype)

    def fix(self, sizes: Mapping[str, int]) -> None:
        """Give the named axes of inputs and outputs a fixed size."""
        for value in (*self.graph.input, *self.graph.output):
            for axis in value.type.tensor_type.shape.dim:
                if axis.dim_param in sizes:
                    axis.dim_value = sizes[axis.dim_param]

    def opset(self, version: int) -> None:
        self.model.opset_import[0].version = version

    def half(self) -> None:
        """Turn everything float into FP16."""
        for tensor in self.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                self.set(tensor.name, numpy_helper.to_array(tensor).astype(np.float16))
        for node in self.graph.node:
            for item in node.attribute:
                if node.op_type == "Cast" and item.i == TensorProto.FLOAT:
                    item.i = TensorProto.FLOAT16
        for value in self.graph.output:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16

    def strip(self) -> None:
        """Remove every Q and DQ: the graph in FP32."""
        made = {node.output[0]: node for node in self.graph.node}
        for node in list(self.graph.node):
            for operand, tensor in enumerate(node.input):
                if tensor in made and made[tensor].op_type == "DequantizeLinear" and node.op_type != "QuantizeLinear":
                    self.float_operand(node.name, operand)
        for node in list(self.graph.node):
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                self.graph.node.remove(node)
