"""The interpreter that rounds every tensor to its written type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

from export.node_by_node import NodeByNode, node_errors
from qdq.errors import ParityError


def write(path: Path, text: str) -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {text}')
    for item in model.graph.node:
        item.name = item.output[0]
    onnx.save(model, path)
    return path


def test_an_fp32_graph_gives_what_onnx_runtime_gives(tiny: Any, canonical: Path) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session, interpreter = ort.InferenceSession(canonical, options), NodeByNode(canonical)
    for feeds in (tiny.feeds(2, 7), tiny.feeds(3, 10)):
        # The same kernels; a matmul may add in another order
        assert np.allclose(interpreter(feeds)["logits"], session.run(None, feeds)[0], atol=1e-5)


def test_it_rounds_where_one_session_would_not(tmp_path: Path) -> None:
    """1 + 2**-11 is no FP16 number; a session that keeps both sums in FP32 returns 2**-11 and a GPU returns 0."""
    path = write(
        tmp_path / "model.onnx",
        "g (float16[N] x, float16[N] small) => (float16[N] y) { a = Add(x, small) y = Sub(a, x) }",
    )
    feeds = {"x": np.ones(2, np.float16), "small": np.full(2, 2.0**-11, np.float16)}
    assert NodeByNode(path)(feeds)["y"].tolist() == [0.0, 0.0]


def test_an_error_is_measured_in_units_of_the_last_place(tmp_path: Path) -> None:
    path = write(
        tmp_path / "model.onnx",
        "g (float16[N] x, float16[N] small) => (float16[N] y) { a = Add(x, small) y = Neg(a) }",
    )
    feeds = {"x": np.ones(2, np.float16), "small": np.full(2, 2.0**-11, np.float16)}
    first, second = node_errors(path, feeds)
    assert (first.op, first.ulp, first.largest) == ("Add", 0.5, 1 + 2.0**-11)
    assert (second.op, second.ulp) == ("Neg", 0.0)


def test_an_overflow_names_the_node(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", "g (float16[N] x) => (float16[N] y) { a = Mul(x, x) y = Tanh(a) }")
    with pytest.raises(ParityError, match="a: its FP16 result 'a' overflows or is NaN; measure ranges on such text"):
        NodeByNode(path)({"x": np.full(2, 300, np.float16)})


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", "g (float16[N] x) => (float16[N] y) { y = Tanh(x) }")
    with pytest.raises(ParityError, match=r"the batch lacks input\(s\) x of the graph"):
        NodeByNode(path)({})
