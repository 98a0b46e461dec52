"""Rewriting the exporter's graph into the canonical one: names, constant reshapes, INT8 weights, nothing left over.

Before: what torch.onnx wrote, with `_symbolic` node names, float weights behind QuantizeLinear, Shape/Concat chains
feeding Reshape, and stack traces with local paths in metadata. After: nodes and tensors named by the module that made
them, weights as INT8 codes behind one DequantizeLinear, constant Reshape shapes, no metadata. Every value computed
stays what it was, to the bit.
"""

from __future__ import annotations

import ast
from collections import Counter

import numpy as np
import onnx_ir as ir

from export.names import CODES, DEQUANTIZE, PAIR, QUANTIZE, SCALE, ZERO_POINT
from qdq.base.versions import __version__
from qdq.errors import ExportError

SCOPES = "pkg.torch.onnx.name_scopes"
PRODUCER = "qdq"
OPERATIONS = {QUANTIZE: "quantize", DEQUANTIZE: "dequantize"}  # last part of a node's name, else the op's own


def tidy(model: ir.Model) -> None:
    """Rewrite `model` in place into the canonical form described above. Raises ExportError naming a stray node."""
    graph = model.graph
    if model.producer_name != PRODUCER:  # a tidy graph has its names, and no scopes left to make them from
        _name_nodes(graph)
    _constant_reshapes(graph)
    _fold_weights(graph)
    _remove_dead(graph)
    _name_initializers(graph)
    _strip_metadata(model)
    graph.sort()


def _name_nodes(graph: ir.Graph) -> None:
    """Name nodes and their outputs by module path: ``encoder.layer.0.attention.self.query.MatMul``.

    A quantizer's pair becomes ``<point>.quantize`` and ``<point>.dequantize``; repeats get ``_1``, ``_2``….
    """
    seen: Counter[str] = Counter()
    finals = {id(value) for value in graph.outputs}
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "['']"))
        # "_empty_nn_module_stack…" is torch's name for "no module".
        paths = [scope for scope in scopes[:-1] if scope and not scope.startswith("_empty_nn_module_stack")]
        module = paths[-1] if paths else ""
        module = module.removeprefix("model").removeprefix(".") or "graph"
        stem = f"{_point(module)}.{OPERATIONS.get(node.op_type, node.op_type)}"
        node.name = stem if not seen[stem] else f"{stem}_{seen[stem]}"
        seen[stem] += 1
        for index, value in enumerate(node.outputs):
            if id(value) not in finals:
                value.name = node.name if not index else f"{node.name}:{index}"


def _point(module: str) -> str:
    """Module path of a quantizer as its readable point name (no leading underscore); others unchanged."""
    path, _, last = module.rpartition(".")
    return f"{path}.{last.lstrip('_')}" if last.endswith("_quantizer") else module


def _owner(node: ir.Node) -> str:
    """Point that a named Q or DQ belongs to, also for the repeated pair of a shared layer (``….quantize_1``)."""
    return str(node.name).rpartition(".")[0]


def _constant_reshapes(graph: ir.Graph) -> None:
    """Replace shapes computed from the batch and sequence sizes by ``[0, 0, …]``: "copy this dimension"."""
    for node in graph:
        if node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[1].is_initializer():
            continue
        source, target = node.inputs[0], node.outputs[0]
        if source is None or source.shape is None or target.shape is None:
            continue
        dims = _copying_shape(list(source.shape), list(target.shape))
        if dims is not None:
            name = f"{node.name}.shape"
            node.replace_input_with(1, initializer(graph, name, np.array(dims, dtype=np.int64)))
            node.attributes.pop("allowzero", None)  # the exporter sets it, and then 0 would mean "empty"


def _copying_shape(source: list[object], target: list[object]) -> list[int] | None:
    """Target dimensions as Reshape constants when each symbolic one is copied from its own position, else None."""
    dims: list[int] = []
    for index, dim in enumerate(target):
        if isinstance(dim, int):
            dims.append(dim)
        elif index < len(source) and getattr(dim, "value", None) is not None and str(source[index]) == str(dim):
            dims.append(0)  # by name: two unknown dimensions need not be the same one
        else:
            return None
    return dims


def _fold_weights(graph: ir.Graph) -> None:
    """Replace weight -> Q -> DQ [-> Transpose] by INT8 codes -> DQ, transposed beforehand."""
    for node in list(graph):
        if node.op_type != QUANTIZE or node.inputs[0] is None or node.inputs[0].const_value is None:
            continue
        dequantize = _dequantizer(node)
        codes, scale, axis = _codes_of(node)
        point = _owner(node)
        transpose = _only_transpose(dequantize)
        if transpose is not None:
            codes, axis = codes.T, 1 - axis
            ir.convenience.replace_all_uses_with(transpose.outputs[0], dequantize.outputs[0])
            graph.remove(transpose, safe=True)
        dequantize.replace_input_with(0, initializer(graph, point + CODES, np.ascontiguousarray(codes)))
        if scale.ndim:
            dequantize.attributes["axis"] = ir.AttrInt64("axis", axis)
        dequantize.outputs[0].shape = ir.Shape(codes.shape)
        graph.remove(node, safe=True)


def _codes_of(node: ir.Node) -> tuple[np.ndarray, np.ndarray, int]:
    """INT8 codes, scale and axis of a QuantizeLinear with constant inputs, as ONNX defines it (round half to even)."""
    weight, scale = (np.asarray(_constant(node, index)) for index in (0, 1))
    axis = node.attributes.get_int("axis", 1) if scale.ndim else 0
    shaped = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]) if scale.ndim else scale
    return np.clip(np.rint(weight / shaped), -128, 127).astype(np.int8), scale, axis


def _constant(node: ir.Node, index: int) -> np.ndarray:
    value = node.inputs[index]
    if value is None or value.const_value is None:
        raise ExportError(f"{node.name}: input {index} is computed at run time; a scale must be a constant")
    return value.const_value.numpy()


def _dequantizer(node: ir.Node) -> ir.Node:
    users = [user for user, _ in node.outputs[0].uses()]
    if not users or any(user.op_type != DEQUANTIZE for user in users):
        raise ExportError(f"{node.name}: expected only {DEQUANTIZE} behind it, found {[u.op_type for u in users]}")
    return users[0]


def _only_transpose(node: ir.Node) -> ir.Node | None:
    """The Transpose that alone reads `node`, None for a weight that is used as it is."""
    users = [user for user, _ in node.outputs[0].uses()]
    return users[0] if len(users) == 1 and users[0].op_type == "Transpose" else None


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add a constant to `graph`."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _remove_dead(graph: ir.Graph) -> None:
    """Remove nodes nothing reads (the Shape/Concat chains, among others), then initializers nothing reads."""
    finals = {id(value) for value in graph.outputs}
    for node in reversed(list(graph)):
        if all(not value.uses() and id(value) not in finals for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and id(value) not in finals:
            del graph.initializers[name]


def _name_initializers(graph: ir.Graph) -> None:
    """Name ``<point>.scale`` and ``<point>.zero_point``; parameters lose the wrapper's ``model.`` prefix."""
    for node in graph:
        if node.op_type in PAIR:
            point = _owner(node)
            _own_parameter(graph, node, 1, point + SCALE)
            _own_parameter(graph, node, 2, point + ZERO_POINT)
    for name, value in list(graph.initializers.items()):
        renamed = name.removeprefix("model.")
        if "." not in renamed:  # an anonymous constant: named after its first reader
            reader, index = next(iter(value.uses()))
            renamed = f"{reader.name}.input_{index}"
        if renamed != name:
            del graph.initializers[name]
            value.name = renamed
            graph.register_initializer(value)


def _own_parameter(graph: ir.Graph, node: ir.Node, index: int, name: str) -> None:
    """Give a point its own named scale or zero-point, shared only by the Q and DQ of that point."""
    value = node.inputs[index]
    if value is None or value.name == name:
        return
    existing = graph.initializers.get(name)
    node.replace_input_with(index, existing or initializer(graph, name, np.asarray(_constant(node, index))))
    if not value.uses() and value.name in graph.initializers:
        del graph.initializers[str(value.name)]


def _strip_metadata(model: ir.Model) -> None:
    """Drop stack traces, local paths and torch's bookkeeping; name the producer."""
    graph = model.graph
    for holder in (model, graph, *graph, *graph.inputs, *graph.outputs, *graph.initializers.values()):
        holder.metadata_props.clear()
    for node in graph:
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    graph.name = "qdq"
    graph.doc_string = model.doc_string = None
    model.producer_name, model.producer_version = PRODUCER, __version__
