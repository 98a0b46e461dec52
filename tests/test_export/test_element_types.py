"""The rules of a strongly typed network, each broken once."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import pytest

from export.passes.base import load_graph
from export.passes.element_types import check_strong_types, element_types
from qdq.errors import PassError


def parsed(text: str, opsets: str = '"": 20') -> gs.Graph:
    model = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{opsets}]> {text}")
    for item in model.graph.node:
        item.name = item.output[0]
    return gs.import_onnx(model)


def test_types_are_those_of_onnx_shape_inference(canonical: Path) -> None:
    types = element_types(load_graph(canonical))
    inferred = onnx.shape_inference.infer_shapes(onnx.load(canonical), strict_mode=True)
    stated = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    assert len(stated) > 100
    assert {name: types[name] for name in stated} == stated
    check_strong_types(load_graph(canonical))  # an FP32 graph is strongly typed, too


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "g (float[B] x, float16[B] h) => (float[B] y) { y = Add(x, h) }",
            "y: 'x' is FLOAT and 'h' is FLOAT16; nothing is converted on its own, put a Cast in front of one",
        ),
        (
            "g (float[B] x, float16[B] h) => (float[B] y) { y = Pow(x, h) }",  # ONNX alone would allow it
            "y: 'x' is FLOAT and 'h' is FLOAT16; nothing is converted on its own, put a Cast in front of one",
        ),
        (
            "g (int64[B] x, int32[B] h) => (int64[B] y) { y = Add(x, h) }",
            "y: 'x' is INT64 and 'h' is INT32; nothing is converted on its own, put a Cast in front of one",
        ),
        (
            "g (float16[B] x) => (int8[B] y) <float s = {1.0}, int8 z = {0}> { y = QuantizeLinear(x, s, z) }",
            "y: 'x' is FLOAT16 and 's' is FLOAT; nothing is converted on its own, put a Cast in front of one",
        ),
        (
            "g (int8[B] x) => (float16[B] y) <float s = {1.0}, int8 z = {0}> { y = DequantizeLinear(x, s, z) }",
            "output 'y' states FLOAT16, it is FLOAT",
        ),
        (
            "g (float16[B] x) => (float16[B] y) { y = BitwiseNot(x) }",
            "y: BitwiseNot does not take FLOAT16 as its X",
        ),
        (
            """g (int8[2,2] a, float16[2,2] b) => (float16[2,2] y) <float s = {1.0}, int8 z = {0}> {
                d = DequantizeLinear(a, s, z)
                c = Cast<to = 10>(d)
                t = Transpose(c)
                y = MatMul(b, t)
            }""",
            "y: c stands between it and a DequantizeLinear; give that one the type instead",
        ),
    ],
)
def test_a_broken_rule_is_named(text: str, problem: str) -> None:
    with pytest.raises(PassError) as error:
        check_strong_types(parsed(text))
    assert f"- {problem}" in str(error.value).splitlines()


def test_all_problems_come_at_once() -> None:
    text = "g (float[B] x, float16[B] h) => (float[B] y, float[B] z) { y = Add(x, h) z = Mul(x, h) }"
    with pytest.raises(PassError, match=r"breaks 2 rule\(s\) of a strongly typed network"):
        check_strong_types(parsed(text))


def test_an_operator_onnx_does_not_know_is_refused() -> None:
    graph = parsed("g (float[B] x) => (float[B] y) { y = com.microsoft.FastGelu(x) }", '"": 20, "com.microsoft": 1')
    with pytest.raises(PassError, match=r"y: ONNX opset 20 defines no operator FastGelu in domain 'com.microsoft'"):
        check_strong_types(graph)


def test_control_flow_is_refused() -> None:
    text = """g (bool c, float[B] x) => (float[B] y) {
        y = If(c) <then_branch = t () => (float[B] a) { a = Abs(x) }, else_branch = e () => (float[B] b) { b = Neg(x) }>
    }"""
    with pytest.raises(PassError, match="y: If holds a graph of its own"):
        check_strong_types(parsed(text))


def test_an_unsorted_graph_is_named() -> None:
    graph = parsed("g (float[B] x) => (float[B] y) { a = Abs(x) y = Neg(a) }")
    graph.nodes.reverse()
    with pytest.raises(PassError, match="y: nothing before it produces 'a'; sort the graph"):
        element_types(graph)
