"""The written encoder that linter and compiler are compared on is the graph that the exporter makes."""

from __future__ import annotations

import onnx

from qdq.studies.linter.graphs.encoder import encoder
from qdq.studies.linter.graphs.form import Form


def test_the_default_form_is_the_canonical_graph(model: onnx.ModelProto) -> None:
    written = encoder(Form())

    def nodes(graph: onnx.GraphProto) -> set[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
        return {(node.name, node.op_type, tuple(node.input), tuple(node.output)) for node in graph.node}

    def tensors(graph: onnx.GraphProto) -> set[tuple[str, int, tuple[int, ...]]]:
        return {(tensor.name, tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer}

    assert nodes(written.graph) == nodes(model.graph)
    assert tensors(written.graph) == tensors(model.graph)
    assert [value.name for value in written.graph.input] == [value.name for value in model.graph.input]
    assert written.opset_import == model.opset_import
