"""check, estimate and inspect as commands: exit codes, formats, 80 columns, and one message per mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

Qdq = Callable[..., Any]


@pytest.fixture(scope="module")
def graph(compiled: Path) -> Path:
    """A canonical graph with the linears and the first attention matmul quantized."""
    return compiled / "work" / "model.qdq.onnx"


@pytest.fixture
def broken(graph: Path, tmp_path: Path) -> Path:
    """The same graph with one scale that is negative: an error."""
    model = onnx.load(graph)
    scale = next(t for t in model.graph.initializer if t.name.endswith("input_quantizer.scale"))
    scale.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(scale), scale.name))
    onnx.save(model, tmp_path / "broken.onnx")
    return tmp_path / "broken.onnx"


def test_check_fails_on_errors_and_with_strict_on_lost_speed(qdq: Qdq, graph: Path, broken: Path) -> None:
    for path, strict, code in ((graph, (), 0), (graph, ("--strict",), 1), (broken, (), 1)):
        ran = qdq("check", path, *strict)
        assert ran.code == code, ran.out
        assert "predicted fusion map" in ran.out and ran.err == ""
        assert max(len(line) for line in ran.out.splitlines() if str(path) not in line) <= 80
    assert "QDQ-E104" in ran.out


def test_check_formats(qdq: Qdq, broken: Path) -> None:
    report = json.loads(qdq("check", broken, "--format", "json", "--target", "trt10", "--sm", "86").out)
    assert (report["target"], report["sm"], report["counts"]["error"]) == ("trt10", 86, 1)
    sarif = json.loads(qdq("check", broken, "--format", "sarif").out)
    assert sarif["version"] == "2.1.0" and sarif["runs"][0]["results"][0]["ruleId"] == "QDQ-E104"


def test_estimate(qdq: Qdq, graph: Path) -> None:
    ran = qdq("estimate", graph, "--batch", "8")
    assert ran.code == 0 and ran.out.startswith("Estimate, NVIDIA T4 (16 GB), batch 8 x sequence 128")
    assert max(map(len, ran.out.splitlines())) <= 80
    assert qdq("estimate", graph, "--device", "l4").out.startswith("Unvalidated estimate, NVIDIA L4")
    told = json.loads(qdq("estimate", graph, "--json").out)
    assert told["estimate_ms"]["lowered"] < told["estimate_ms"]["float32"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "gone.onnx"), "gone.onnx is not a file; give the path of an ONNX file"),
        (("check", "GRAPH", "--target", "trt12"), "--target: unknown value 'trt12'; did you mean 'trt11'?"),
        (("check", "GRAPH", "--sm", "7"), "--sm 7: write the compute capability without the point, 75 for 7.5"),
        (("check", "GRAPH", "--format", "jsn"), "--format: unknown value 'jsn'; did you mean 'json'?"),
        (("estimate", "GRAPH", "--device", "t40"), "unknown value 't40'; did you mean 't4'?"),
        (("estimate", "GRAPH", "--batch", "0"), "batch"),
        (("inspect", "gone.json"), "gone.json: is not a file; give the layer_info.json that a build leaves"),
        (("inspect", "GRAPH"), "model.qdq.onnx: is no JSON file; give the layer_info.json"),
    ],
)
def test_mistakes(qdq: Qdq, graph: Path, arguments: tuple[str, ...], message: str) -> None:
    ran = qdq(*(str(graph) if word == "GRAPH" else word for word in arguments))
    assert ran.code == 2 and ran.out == ""
    assert message in ran.err and ran.err.count("\n") == 1


def test_inspect_reads_the_graph_beside_the_file(qdq: Qdq, graph: Path, tmp_path: Path) -> None:
    (tmp_path / "layer_info.json").write_text(json.dumps({"Layers": []}))
    ran = qdq("inspect", tmp_path / "layer_info.json")
    assert ran.code == 2 and f"{tmp_path / 'model.onnx'}: is not a file" in ran.err
    ran = qdq("inspect", tmp_path / "layer_info.json", "--model", graph)
    assert ran.code == 1 and "layer_info.json" in ran.err  # no layer with a precision: the build was not detailed
