"""`qdq check` looks into bodies of If, Loop and Scan: errors in them are errors, and notes say what is left out."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.lint import lint
from qdq.studies.linter.graphs.edits_blocks import conditional

from .graphs import Check, fired


def test_errors_in_branches_are_errors_with_their_path(check: Check) -> None:
    report = check(partial(conditional, zero=3))
    found = {finding.nodes[0] for finding in report.of("error")}
    assert {name.rpartition("/")[0] for name in found} == {"choose/then_branch", "choose/else_branch"}
    assert not check(conditional).of("error")


def _pair(source: str, name: str, zero: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [source, "scale", zero], [f"{name}q"], f"{name}.q"),
        helper.make_node("DequantizeLinear", [f"{name}q", "scale", zero], [f"{name}d"], f"{name}.dq"),
    ]


def _value(name: str, element: int = TensorProto.FLOAT, shape: tuple[int, ...] | None = (2, 8)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def _file(nodes: list[onnx.NodeProto], outer_zero: int) -> onnx.ModelProto:
    """A graph of one node, with a scale and a zero-point that its body reads from outside."""
    values = {"scale": np.float32(0.1), "zero": np.int8(outer_zero), "count": np.int64(3), "go": np.True_}
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "g", [_value("x")], [_value("y")], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _loop() -> list[onnx.NodeProto]:
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["on_out"], "keep"), *_pair("state", "p", "zero")],
        "body",
        [_value("i", TensorProto.INT64, ()), _value("on", TensorProto.BOOL, ()), _value("state")],
        [_value("on_out", TensorProto.BOOL, ()), _value("pd")],
    )
    return [helper.make_node("Loop", ["count", "go", "x"], ["y"], "repeat", body=body)]


def _scan() -> list[onnx.NodeProto]:
    body = helper.make_graph(_pair("row", "p", "zero"), "body", [_value("row", shape=(8,))], [_value("pd", shape=(8,))])
    return [helper.make_node("Scan", ["x"], ["y"], "rows", body=body, num_scan_inputs=1)]


def _nested() -> list[onnx.NodeProto]:
    inner = helper.make_graph(_pair("x", "p", "zero"), "inner", [], [_value("pd", shape=None)])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["o"])], "other", [], [_value("o", shape=None)])
    choice = helper.make_node("If", ["go"], ["c"], "inside", then_branch=inner, else_branch=other)
    outer = helper.make_graph([choice], "outer", [], [_value("c", shape=None)])
    plain = helper.make_graph([helper.make_node("Identity", ["x"], ["u"])], "plain", [], [_value("u", shape=None)])
    return [helper.make_node("If", ["go"], ["y"], "outside", then_branch=outer, else_branch=plain)]


def test_loops_scans_and_nested_branches() -> None:
    for nodes, path in (
        (_loop(), "repeat/body"),
        (_scan(), "rows/body"),
        (_nested(), "outside/then_branch/inside/then_b"),
    ):
        wrong = lint(_file(nodes, 3), "trt11")
        assert [finding for finding in wrong.of("error") if finding.nodes[0].startswith(path)], path
        right = lint(_file(nodes, 0), "trt11")
        assert not right.of("error"), path
        assert "QDQ-N312" in fired(right)
        assert "QDQ-N309" not in fired(right)  # something is quantized


def test_float_codes_in_a_branch_need_a_gpu_that_has_them() -> None:
    code = helper.make_tensor("eight", TensorProto.FLOAT8E4M3FN, [], [0.0])
    model = _file(_loop(), 0)
    for node in model.graph.node[0].attribute[0].g.node:
        if node.op_type != "Identity":
            node.input[2] = "eight"
    model.graph.initializer.append(code)
    assert "QDQ-E131" in fired(lint(model, "trt11", sm=80))
    assert "QDQ-E131" not in fired(lint(model, "trt11", sm=89))
