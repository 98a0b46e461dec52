"""Element types of a graph by ONNX's own operator schemas, and the rules of a strongly typed network.

`Half` describes the 16-bit types that the body of a TensorRT graph (everything that is not quantized) may have.

TensorRT runs every node in the types written in the graph; no builder flag changes them afterwards. ONNX's shape
inference would need the weights in memory and stops at 2 GiB; element types need neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.defs import OpSchema

from export.inventory import LAYOUT, MULTIPLICATIONS
from export.names import DEQUANTIZE, QUANTIZE
from export.passes.base import PassResult
from export.reading import FLOATS, type_name
from qdq.errors import PassError

Body = Literal["fp16", "bf16", "fp32"]
MARGIN = 2  # between the largest measured value and the largest one of the type


@dataclass(frozen=True)
class Half:
    """A 16-bit floating-point type."""

    name: str  # fp16 | bf16, as in options and tensor names
    element: int  # onnx.TensorProto element type
    largest: float  # finite value
    smallest: float  # normal value; below it precision is lost bit by bit

    @property
    def title(self) -> str:
        """Spelling in messages."""
        return self.name.upper()

    @property
    def limit(self) -> float:
        """Largest measured value that is trusted to fit."""
        return self.largest / MARGIN

    @property
    def holds(self) -> str:
        """Clause for messages: "FP16 holds 65504"."""
        return f"{self.title} holds {self.largest:.6g}"

    def array(self, values: NDArray[Any]) -> NDArray[Any]:
        """Round `values` to this type; infinite beyond its range."""
        with np.errstate(over="ignore"):
            return values.astype(helper.tensor_dtype_to_np_dtype(self.element))


HALVES: Mapping[str, Half] = {
    "fp16": Half("fp16", TensorProto.FLOAT16, 65504.0, 2.0**-14),
    "bf16": Half("bf16", TensorProto.BFLOAT16, (2 - 2.0**-7) * 2.0**127, 2.0**-126),
}

# Ops that pass values on unchanged: a type their input needs, their output needs too.
MOVING = (LAYOUT - {"Cast"}) | {"Concat", "Expand", "Gather", "Slice", "Split", "Tile"}

Types = dict[str, int]  # tensor name -> onnx.TensorProto element type


def element_types(graph: gs.Graph) -> Types:
    """Infer the element type of every tensor of a topologically sorted graph.

    Where operands of one type differ the first one counts; `check_strong_types` reports them. Raises PassError for an
    operator this ONNX version does not define and for control flow, naming the node.
    """
    types: Types = {tensor.name: onnx_type(tensor) for tensor in graph.inputs}
    for node in graph.nodes:
        types.update(output_types(node, graph.opset, types))
    return types


def output_types(node: gs.Node, opset: int, types: Types) -> Types:
    """Infer the types of a node's outputs; `types` has its variable inputs and gets its constants. Raises as above."""
    schema = schema_of(node, opset)
    bound: Types = {}
    for tensor, formal in zip(node.inputs, formals(schema.inputs, len(node.inputs)), strict=True):
        if tensor.is_empty():
            continue
        if isinstance(tensor, gs.Constant):
            types[tensor.name] = onnx_type(tensor)
        elif tensor.name not in types:
            raise PassError(f"{node.name}: nothing before it produces '{tensor.name}'; sort the graph")
        bound.setdefault(formal.type_str, types[tensor.name])
    outputs = zip(node.outputs, formals(schema.outputs, len(node.outputs)), strict=True)
    return {tensor.name: _output_type(node, formal, schema, bound) for tensor, formal in outputs}


def _output_type(node: gs.Node, formal: OpSchema.FormalParameter, schema: OpSchema, bound: Types) -> int:
    """Type of one output: a variable its inputs bound, else what an attribute or the schema says."""
    if formal.type_str in bound:
        return bound[formal.type_str]
    for attribute in ("to", "dtype", "output_dtype"):
        if node.attrs.get(attribute):
            return int(node.attrs[attribute])
    if isinstance(node.attrs.get("value"), gs.Constant):
        return onnx_type(node.attrs["value"])
    allowed = allowed_types(schema, formal)
    if len(allowed) == 1:
        return next(iter(allowed))
    return TensorProto.UINT8 if node.op == QUANTIZE else TensorProto.FLOAT  # the defaults of Q and of all others


def schema_of(node: gs.Node, opset: int) -> OpSchema:
    """ONNX's definition of the node's operator. Raises PassError when there is none, or for control flow."""
    if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
        raise PassError(f"{node.name}: {node.op} holds a graph of its own; export the model without control flow")
    try:
        return onnx.defs.get_schema(node.op, opset, node.domain or "")
    except onnx.defs.SchemaError as error:
        raise PassError(
            f"{node.name}: ONNX opset {opset} defines no operator {node.op} in domain '{node.domain or 'ai.onnx'}'; "
            "export with standard operators"
        ) from error


def formals(parameters: Sequence[OpSchema.FormalParameter], count: int) -> list[OpSchema.FormalParameter]:
    """The formal parameter of each of `count` operands; the last one repeats where it is variadic."""
    return [parameters[min(index, len(parameters) - 1)] for index in range(count)]


def allowed_types(schema: OpSchema, formal: OpSchema.FormalParameter) -> frozenset[int]:
    """Element types an operand or result may have."""
    variables = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    names = variables.get(formal.type_str, [formal.type_str])
    return frozenset(_ELEMENTS[name] for name in names if name in _ELEMENTS)


_ELEMENTS: Mapping[str, int] = {f"tensor({name.lower()})": number for name, number in TensorProto.DataType.items()}


def onnx_type(tensor: gs.Tensor) -> int:
    """ONNX element type of a tensor with a known dtype. Raises PassError when none is stated."""
    if tensor.dtype is None:
        raise PassError(f"tensor '{tensor.name}': no element type is stated; export again")
    if isinstance(tensor.dtype, int):  # graphsurgeon's spelling of the types numpy lacks
        return tensor.dtype
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))


def check_strong_types(graph: gs.Graph) -> PassResult:
    """Pass: prove, changing nothing, that a strongly typed network can be made of the graph.

    Every node's float operands share one type that its operator takes, a QuantizeLinear's scale has its input's type,
    a DequantizeLinear makes its scale's type, outputs have the types they state, and no Cast stands between a
    DequantizeLinear and the MatMul or Gemm it feeds (TensorRT would not fuse them).

    Raises PassError listing every node that breaks a rule.
    """
    types = element_types(graph)
    problems = [problem for node in graph.nodes for problem in _node_problems(node, graph.opset, types)]
    for tensor in graph.outputs:
        if onnx_type(tensor) != types[tensor.name]:
            problems.append(
                f"output '{tensor.name}' states {type_name(onnx_type(tensor))}, it is {type_name(types[tensor.name])}"
            )
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise PassError(f"the graph breaks {len(problems)} rule(s) of a strongly typed network:\n{listed}")
    return PassResult()


def _node_problems(node: gs.Node, opset: int, types: Types) -> list[str]:
    schema = schema_of(node, opset)
    problems = []
    first: dict[str, gs.Tensor] = {}  # operands that must agree, by type variable; float ones by "float"
    for tensor, formal in zip(node.inputs, formals(schema.inputs, len(node.inputs)), strict=True):
        if tensor.is_empty():
            continue
        found = types[tensor.name]
        if found not in allowed_types(schema, formal):
            problems.append(f"{node.name}: {node.op} does not take {type_name(found)} as its {formal.name}")
        other = first.setdefault("float" if found in FLOATS else formal.type_str, tensor)
        if types[other.name] != found:
            problems.append(
                f"{node.name}: '{other.name}' is {type_name(types[other.name])} and '{tensor.name}' is "
                f"{type_name(found)}; nothing is converted on its own, put a Cast in front of one"
            )
    # A cast behind a DequantizeLinear keeps the product from running in INT8.
    if node.op in MULTIPLICATIONS:
        problems.extend(
            f"{node.name}: {cast} stands between it and a DequantizeLinear; give that one the type instead"
            for cast in (_cast_behind_dequantize(tensor) for tensor in node.inputs[:2])
            if cast
        )
    return problems


def _cast_behind_dequantize(tensor: gs.Tensor) -> str | None:
    """Name of a Cast between a DequantizeLinear and `tensor`, seen through layout ops; None without one."""
    cast = None
    while tensor.inputs and tensor.inputs[0].op in LAYOUT:
        if tensor.inputs[0].op == "Cast":
            cast = str(tensor.inputs[0].name)
        tensor = tensor.inputs[0].inputs[0]
    return cast if tensor.inputs and tensor.inputs[0].op == DEQUANTIZE else None
