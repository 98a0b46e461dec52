"""INT64 graph inputs as INT32: read as they are wherever an operator takes them, one Cast where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest

from export.passes import LowerOptions, lower
from export.passes.element_types import check_strong_types
from export.passes.narrow_inputs import narrow_inputs


def parsed(text: str) -> gs.Graph:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {text}')
    for item in model.graph.node:
        item.name = item.output[0]
    return gs.import_onnx(model)


def run(graph: gs.Graph, **feeds: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(gs.export_onnx(graph).SerializeToString())
    result: list[np.ndarray] = session.run(None, feeds)
    return result


def narrowed(text: str, **feeds: np.ndarray) -> gs.Graph:
    """The graph after the pass: proved, and with the same outputs for INT32 feeds as before for INT64 ones."""
    graph = parsed(text)
    expected = run(graph, **feeds)
    graph = parsed(text)
    assert narrow_inputs(graph).modified
    graph.cleanup().toposort()
    check_strong_types(graph)
    onnx.checker.check_model(gs.export_onnx(graph), full_check=True)
    assert all(tensor.dtype == np.int32 for tensor in graph.inputs)
    actual = run(graph, **{name: value.astype(np.int32) for name, value in feeds.items()})
    for left, right in zip(actual, expected, strict=True):
        assert left.dtype == right.dtype
        assert np.array_equal(left, right)
    assert not narrow_inputs(graph).modified
    return graph


def ops(graph: gs.Graph) -> list[str]:
    return sorted(node.op for node in graph.nodes)


IDS = np.array([[3, 1, 0], [2, 0, 1]])


def test_a_lookup_a_shape_and_a_cast_read_int32() -> None:
    graph = narrowed(
        """g (int64[B,S] ids) => (float[B,S,2] y, int64[2] s, bool[B,S] b)
        <float[4,2] table = {0, 1, 2, 3, 4, 5, 6, 7}> {
            y = Gather(table, ids)
            s = Shape(ids)
            b = Cast<to = 9>(ids)
        }""",
        ids=IDS,
    )
    assert ops(graph) == ["Cast", "Gather", "Shape"]


def test_a_comparison_takes_its_constant_along() -> None:
    graph = narrowed("g (int64[B,S] ids) => (bool[B,S] y) <int64 pad = {0}> { y = Equal(ids, pad) }", ids=IDS)
    assert ops(graph) == ["Equal"]


def test_a_constant_that_others_read_or_that_exceeds_int32_stays() -> None:
    graph = narrowed(
        """g (int64[B,S] ids) => (bool[B,S] y, bool[B,S] z, int64[2] w) <int64 pad = {0}, int64 far = {5000000000}> {
            y = Equal(ids, pad)
            z = Less(ids, far)
            s = Shape(ids)
            w = Add(s, pad)
        }""",
        ids=IDS,
    )
    assert ops(graph) == ["Add", "Cast", "Equal", "Less", "Shape"]
    assert {tensor.name for tensor in graph.tensors().values() if isinstance(tensor, gs.Constant)} == {
        "pad",
        "pad.int32",
        "far",
    }


def test_arithmetic_gets_one_cast_for_all_its_readers() -> None:
    """Position ids as RoBERTa counts them."""
    graph = narrowed(
        """g (int64[B,S] mask) => (int64[B,S] y) <int64 one = {1}, int64 axis = {1}> {
            sums = CumSum(mask, axis)
            products = Mul(sums, mask)
            y = Add(products, one)
        }""",
        mask=np.array([[1, 1, 0], [1, 0, 0]]),
    )
    assert ops(graph) == ["Add", "Cast", "CumSum", "Mul"]
    (cast,) = (node for node in graph.nodes if node.op == "Cast")
    assert cast.name == "mask.int64"


def test_what_only_moves_values_moves_int32_except_into_an_output() -> None:
    """Multiple choice folds its choices into the batch."""
    graph = narrowed(
        """g (int64[B,N,S] ids) => (float[C,S] y, int64[C,S] z)
        <int64[2] flat = {-1, 3}, float[4] table = {0, 1, 2, 3}> {
            rows = Reshape(ids, flat)
            y = Gather(table, rows)
            z = Reshape(ids, flat)
        }""",
        ids=IDS[:, None].repeat(2, 1),
    )
    assert ops(graph) == ["Cast", "Gather", "Reshape", "Reshape"]
    assert next(node for node in graph.nodes if node.name == "z").inputs[0].name == "ids.int64"


def test_other_inputs_are_left_alone() -> None:
    graph = parsed("g (int32[B,S] ids, float[B] x) => (int32[B,S] y, float[B] z) { y = Abs(ids) z = Abs(x) }")
    assert not narrow_inputs(graph).modified


@pytest.mark.parametrize("body", ["fp32", "fp16"])
def test_the_lowered_graph_takes_int32_and_computes_the_same(
    tiny: Any, canonical: Path, tmp_path: Path, body: Any
) -> None:
    report = lower(canonical, "tensorrt", tmp_path, options=LowerOptions(body))
    assert [step["pass"] for step in report["passes"]] == [
        "share_factors",
        "share_quantizers",
        "needed_rows",
        "float_tables",
        "half_body",
        "merge_projections",
        "weight_ratios",
        "quantized_products",
        "narrow_inputs",
        "strong_types",
    ]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(tmp_path / "model.onnx", options)
    assert {value.type for value in session.get_inputs()} == {"tensor(int32)"}
    narrowed_by = next(step for step in report["passes"] if step["pass"] == "narrow_inputs")
    assert not any(name.endswith(".int64") for name in narrowed_by["changed"])
    if body == "fp32":
        feeds = tiny.feeds(2, 9)
        (expected,) = ort.InferenceSession(canonical, options).run(None, feeds)
        (actual,) = session.run(None, {name: value.astype(np.int32) for name, value in feeds.items()})
        assert np.allclose(actual, expected, atol=1e-6)  # the same kernels in another order of nodes
