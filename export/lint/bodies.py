"""Bodies of If, Loop and Scan as graphs of their own, so that rules look into them, too."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper

from export.lint.graph import LintGraph
from export.names import PAIR
from export.reading import label


def bodies_of(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """Yield the name and the graph of every body of a node; none for nodes that are no control flow."""
    for item in node.attribute:
        if item.type == AttributeProto.GRAPH:
            yield item.name, item.g
        elif item.type == AttributeProto.GRAPHS:
            yield from ((f"{item.name}.{place}", body) for place, body in enumerate(item.graphs))


def inner_nodes(node: NodeProto) -> Iterator[NodeProto]:
    """Yield every node in the bodies of `node`, and in theirs."""
    for _, body in bodies_of(node):
        for inner in body.node:
            yield inner
            yield from inner_nodes(inner)


def quantizes_inside(graph: LintGraph) -> bool:
    """True when a body holds a QuantizeLinear or DequantizeLinear."""
    return any(inner.op_type in PAIR for node in graph.nodes for inner in inner_nodes(node))


def body_models(graph: LintGraph) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield every body as a model, with the path to it: ``choose/then_branch``.

    Tensors of the graph around it that it reads are its inputs, or initializers where they are there.
    """
    for node in graph.nodes:
        for name, body in bodies_of(node):
            yield f"{label(node)}/{name}", _model(graph, body)


def _model(graph: LintGraph, body: GraphProto) -> onnx.ModelProto:
    model = onnx.ModelProto(ir_version=graph.model.ir_version)
    model.opset_import.extend(graph.model.opset_import)
    model.graph.CopyFrom(body)
    for tensor in sorted(_outside(body)):
        if tensor in graph.index.initializers:
            model.graph.initializer.append(graph.index.initializers[tensor])
            continue
        element = graph.types.get(tensor) or TensorProto.FLOAT
        shape = graph.shapes.get(tensor)
        model.graph.input.append(helper.make_tensor_value_info(tensor, element, shape))
    return model


def _outside(body: GraphProto) -> set[str]:
    """Tensors that a body, or a body in it, reads and does not make."""
    made = {tensor.name for tensor in body.initializer} | {value.name for value in body.input}
    made |= {output for node in body.node for output in node.output}
    read = {tensor for node in body.node for tensor in node.input if tensor}
    read |= {value.name for value in body.output}
    for node in body.node:
        for _, inner in bodies_of(node):
            read |= _outside(inner)
    return read - made
