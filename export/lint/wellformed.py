"""Checks that a file is a graph at all: nodes sorted, with the inputs their ops need; tensors with all their data."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import NodeProto, TensorProto

from export.reading import label
from qdq.errors import ExportError


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
