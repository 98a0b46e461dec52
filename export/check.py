"""Structural check of the canonical QDQ graph: every rule a target relies on, all broken ones named at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from export.inventory import GraphIndex
from export.names import DEQUANTIZE, IR_VERSION, OPSET, PAIR, QUANTIZE, consumers
from export.reading import FLOATS, attribute, read_onnx
from qdq.errors import ExportError

# Ops that a canonical graph never holds, and what they mean.
FORBIDDEN: Mapping[str, str] = {
    "Erf": "GELU is written out; it must be a single Gelu",
    "Dropout": "the module was not in eval mode",
    "Identity": "it only renames a tensor; the exporter's clean-up did not run",
    "DynamicQuantizeLinear": "its scale is computed at run time; calibrate and export constants",
}


@dataclass(frozen=True)
class CanonicalGraph:
    """A graph under check, with its tensors at hand."""

    model: onnx.ModelProto
    index: GraphIndex
    folder: str  # where external data lies

    @property
    def nodes(self) -> Sequence[NodeProto]:
        """All nodes, in order."""
        return list(self.model.graph.node)

    @property
    def pairs(self) -> Iterator[NodeProto]:
        """The QuantizeLinear and DequantizeLinear nodes, in order."""
        return (node for node in self.nodes if node.op_type in PAIR)

    def array(self, node: NodeProto, operand: int) -> NDArray[Any] | None:
        """Value of an initializer operand; None when absent or computed."""
        name = node.input[operand] if operand < len(node.input) else ""
        tensor = self.index.initializers.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor, self.folder)

    def weight(self, node: NodeProto) -> TensorProto | None:
        """The constant a Q or DQ works on, directly or through the Q before it; None for an activation."""
        source = node.input[0]
        producer = self.index.producers.get(source)
        if producer is not None and producer.op_type == QUANTIZE:
            source = producer.input[0]
        return self.index.initializers.get(source)


def _onnx_checker(path: Path) -> Iterator[str]:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        yield f"onnx.checker: {' '.join(str(error).split())}; export again"


def _header(graph: CanonicalGraph) -> Iterator[str]:
    opsets = {entry.domain: entry.version for entry in graph.model.opset_import}
    if opsets != {"": OPSET}:
        yield f"opset_import is {opsets}; export with opset {OPSET} of the default domain and nothing else"
    if graph.model.ir_version != IR_VERSION:
        yield f"ir_version is {graph.model.ir_version}; save with {IR_VERSION}, the newest that every runtime reads"
    for function in graph.model.functions:
        yield f"{function.name}: a model-local function is left; export again with inlining"


def _names(graph: CanonicalGraph) -> Iterator[str]:
    seen: set[str] = set()
    for node in graph.nodes:
        if not node.name:
            yield f"the {node.op_type} that makes '{node.output[0]}' has no name; tidy the graph"
        elif node.name in seen:
            yield f"{node.name}: two nodes have this name; tidy the graph"
        seen.add(node.name)


def _interface(graph: CanonicalGraph) -> Iterator[str]:
    for value in graph.model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if len(dims) < 2:
            yield f"input '{value.name}' has {len(dims)} dimension(s); batch and sequence are needed"
        for position, dim in enumerate(dims):
            if not dim.dim_param:
                fixed = dim.dim_value if dim.HasField("dim_value") else "unnamed"
                yield f"input '{value.name}': dimension {position} is {fixed}; export with dynamic batch and sequence"
    for value in graph.model.graph.output:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].HasField("dim_value"):
            yield f"output '{value.name}': the batch is fixed at {dims[0].dim_value}; export a batch of at least 2"


def _scales(graph: CanonicalGraph) -> Iterator[str]:
    for node in graph.pairs:
        scale = graph.array(node, 1)
        if scale is None:
            yield f"{node.name}: its scale '{node.input[1]}' is computed at run time; calibrate and export constants"
        elif scale.dtype != np.float32:
            yield f"{node.name}: its scale is {scale.dtype}; the canonical graph stores float32"
        elif not np.isfinite(scale).all() or (scale <= 0).any():
            yield f"{node.name}: its scale '{node.input[1]}' is not positive and finite; calibrate this point again"
        elif (_as_fp16(scale) != scale).any():
            yield f"{node.name}: its scale '{node.input[1]}' is not an FP16 value; round scales before quantizing"


def _as_fp16(scale: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return scale.astype(np.float16).astype(np.float32)


def _zero_points(graph: CanonicalGraph) -> Iterator[str]:
    for node in graph.pairs:
        zero, scale = graph.array(node, 2), graph.array(node, 1)
        if zero is None:
            yield f"{node.name}: has no constant zero-point; give it an INT8 zero"
        elif zero.dtype != np.int8 or zero.any():
            yield f"{node.name}: its zero-point is not INT8 zero ({zero.dtype}); the canonical graph is symmetric"
        elif scale is not None and zero.shape != scale.shape:
            yield f"{node.name}: zero-point shape {list(zero.shape)}, scale shape {list(scale.shape)}; make them equal"


def _granularity(graph: CanonicalGraph) -> Iterator[str]:
    for node in graph.pairs:
        scale, weight = graph.array(node, 1), graph.weight(node)
        if scale is None or scale.ndim == 0:
            continue
        axis = attribute(node, "axis", 1)
        if weight is None and node.op_type == DEQUANTIZE and node.input[0] in graph.index.producers:
            continue  # an activation, named at its Q
        if weight is None:
            yield f"{node.name}: a per-channel activation scale {list(scale.shape)}; activations are per tensor"
        elif scale.ndim != 1:
            yield f"{node.name}: its scale has {scale.ndim} dimensions; use one scale per output channel"
        elif not -len(weight.dims) <= axis < len(weight.dims) or weight.dims[axis] != scale.size:
            yield (
                f"{node.name}: {scale.size} scales on axis {axis} of a weight of shape {list(weight.dims)}; "
                "the axis must be the output channels"
            )


def _wiring(graph: CanonicalGraph) -> Iterator[str]:
    types = _element_types(graph)
    outputs = {value.name for value in graph.model.graph.output}
    for node in graph.pairs:
        source = node.input[0]
        producer = graph.index.producers.get(source)
        if node.op_type == DEQUANTIZE:
            yield from _dequantize_source(graph, node, producer)
            continue
        if types.get(source) not in FLOATS:
            kind = TensorProto.DataType.Name(types.get(source, TensorProto.UNDEFINED))
            yield f"{node.name}: quantizes '{source}' of type {kind}; a Q reads float, remove the doubled Q"
        strangers = [r.name for r in graph.index.readers.get(node.output[0], []) if r.op_type != DEQUANTIZE]
        strangers += [f"output '{name}'" for name in node.output if name in outputs]
        for stranger in strangers:
            yield f"{node.name}: its codes are read by {stranger}; put a DequantizeLinear between them"


def _dequantize_source(graph: CanonicalGraph, node: NodeProto, producer: NodeProto | None) -> Iterator[str]:
    source = node.input[0]
    if producer is not None and producer.op_type == QUANTIZE:
        if list(producer.input[1:]) != list(node.input[1:]):
            yield f"{node.name}: scale or zero-point differ from those of {producer.name}; a pair shares both"
        return
    tensor = graph.index.initializers.get(source)
    if tensor is None or tensor.data_type != TensorProto.INT8:
        yield f"{node.name}: '{source}' is neither the output of a Q nor an INT8 initializer; quantize it first"


def _element_types(graph: CanonicalGraph) -> dict[str, int]:
    """Element type of every tensor that has one stated, inferring only when a Q's input has none."""
    types = _stated_types(graph.model.graph)
    if all(node.input[0] in types for node in graph.pairs if node.op_type == QUANTIZE):
        return types
    return _stated_types(onnx.shape_inference.infer_shapes(graph.model).graph)


def _stated_types(graph: onnx.GraphProto) -> dict[str, int]:
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def _operators(graph: CanonicalGraph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op_type in FORBIDDEN:
            yield f"{node.name}: {node.op_type} is left in the graph: {FORBIDDEN[node.op_type]}"
        if node.op_type == "ReduceMean" and any(
            r.op_type == "Sub" for r in graph.index.readers.get(node.output[0], [])
        ):
            yield f"{node.name}: LayerNormalization is written out; export with opset {OPSET}, where it is a single op"


def _dead(graph: CanonicalGraph) -> Iterator[str]:
    live = {value.name for value in graph.model.graph.output}
    for node in reversed(graph.nodes):
        if live.isdisjoint(node.output):
            yield f"{node.name}: nothing reads its result; remove it"
        else:
            live.update(node.input)
    for name in graph.index.initializers:
        if name not in live:
            yield f"initializer '{name}': nothing reads it; remove it"


def _metadata(graph: CanonicalGraph) -> Iterator[str]:
    body = graph.model.graph
    values = (*body.input, *body.output, *body.value_info, *body.initializer)
    for holder in (graph.model, body, *body.node, *values):
        # Stack traces and torch's bookkeeping name local files and change between machines.
        if holder.metadata_props or holder.doc_string:
            name = getattr(holder, "name", "") or "the model"
            yield f"{name}: carries metadata or a doc string; strip both"


Rule = Callable[[CanonicalGraph], Iterator[str]]

RULES: tuple[Rule, ...] = (
    _header,
    _names,
    _interface,
    _scales,
    _zero_points,
    _granularity,
    _wiring,
    _operators,
    _dead,
    _metadata,
)


@dataclass(frozen=True)
class CheckReport:
    """Contents of a graph that passed."""

    quantize: int  # number of QuantizeLinear nodes
    weights: int  # number of DequantizeLinear nodes that read a constant


def check_file(path: Path, expected: Sequence[str] | None = None) -> CheckReport:
    """Check a file; `expected` are the placed points of placement.json (None: any).

    External data is found beside it and read tensor by tensor. Raises ExportError listing every broken rule with the
    node or tensor and what to do, and when the file or its external data cannot be read.
    """
    model = read_onnx(path, ExportError)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and not (path.parent / entry.value).is_file():
                raise ExportError(f"{path}: its weights lie in '{entry.value}', which is not beside it; export again")
    # Every rule, so that all problems are named at once.
    graph = CanonicalGraph(model, GraphIndex(model.graph), str(path.parent))
    problems = list(_onnx_checker(path))
    for rule in RULES:
        problems.extend(rule(graph))
    if expected is not None:
        problems.extend(_points(graph, expected))
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise ExportError(f"{path} breaks {len(problems)} rule(s) of the canonical graph:\n{listed}")
    quantize = sum(node.op_type == QUANTIZE for node in graph.nodes)
    weights = sum(node.op_type == DEQUANTIZE and graph.weight(node) is not None for node in graph.nodes)
    return CheckReport(quantize, weights)


def _points(graph: CanonicalGraph, expected: Sequence[str]) -> Iterator[str]:
    """Placed points that no pair serves, their own or one the exporter merged them into; pairs without a point."""
    for point in expected:
        made = ("dequantize",) if point.endswith(".weight_quantizer") else ("quantize", "dequantize")
        if not all(f"{point}.{name}" in graph.index.nodes for name in made) and not _served(graph, point):
            yield f"{point}: placed, but no QuantizeLinear/DequantizeLinear serves it; inject and export again"
    for node in graph.pairs:
        if re.sub(r"\.(de)?quantize(_\d+)?$", "", node.name) not in expected:
            yield f"{node.name}: not a point of placement.json; export the module that placement describes"


def _served(graph: CanonicalGraph, point: str) -> bool:
    """Return whether a DequantizeLinear lies in front of an operand that `point` quantizes."""
    found = consumers(graph.nodes, point)
    return any(graph.index.to_operand(node, operand)[1] is not None for node, operand in found)
