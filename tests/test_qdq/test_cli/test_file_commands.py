"""check, estimate and inspect as commands: exit codes, formats, 80 columns, and one message per mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

Qdq = Callable[..., Any]


def write_graph(path: Path, scale: float = 0.1, float_weight: bool = False) -> Path:
    """relu(x [batch, 128, 32]) through a pair, times an INT8 weight [32, 32] of one scale (or a float one)."""
    make = onnx.helper.make_node
    pair = ["x.scale", "zero"]
    nodes = [
        make("Relu", ["x"], ["h"], "relu"),  # a Q right behind an input is a finding
        make("QuantizeLinear", ["h", *pair], ["x.codes"], "x.quantize"),
        make("DequantizeLinear", ["x.codes", *pair], ["x.dq"], "x.dequantize"),
        make("DequantizeLinear", ["codes", "w.scale", "zero"], ["w.dq"], "w.dequantize"),
        make("MatMul", ["x.dq", "float" if float_weight else "w.dq"], ["y"], "linear.MatMul"),
    ]
    values = {
        "x.scale": np.float32(scale),
        "w.scale": np.float32(0.1),
        "zero": np.int8(0),
        **({"float": np.ones((32, 32), np.float32)} if float_weight else {}),
        "codes": np.ones((32, 32), np.int8),
    }
    if float_weight:
        del nodes[3], values["codes"], values["w.scale"]
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["batch", 128, 32]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "linear", ends[:1], ends[1:], tensors)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """One INT8 linear."""
    return write_graph(tmp_path / "linear.onnx")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """The same with a negative scale, which TensorRT refuses."""
    return write_graph(tmp_path / "broken.onnx", scale=-0.1)


def test_check_fails_on_errors_and_with_strict_on_lost_speed(
    qdq: Qdq, graph: Path, broken: Path, tmp_path: Path
) -> None:
    slow = write_graph(tmp_path / "slow.onnx", float_weight=True)
    strict = ("--strict",)
    for path, options, code in ((graph, strict, 0), (slow, (), 0), (slow, strict, 1), (broken, (), 1)):
        ran = qdq("check", path, *options)
        assert ran.code == code, ran.out
        assert "predicted fusion map" in ran.out and ran.err == ""
        assert max(len(line) for line in ran.out.splitlines() if str(path) not in line) <= 80
    assert "QDQ-E104" in ran.out


def test_check_formats(qdq: Qdq, broken: Path) -> None:
    report = json.loads(qdq("check", broken, "--format", "json", "--target", "trt10", "--sm", "86").out)
    assert (report["target"], report["sm"], report["counts"]["error"]) == ("trt10", 86, 2)  # Q and DQ
    sarif = json.loads(qdq("check", broken, "--format", "sarif").out)
    assert sarif["version"] == "2.1.0" and sarif["runs"][0]["results"][0]["ruleId"] == "QDQ-E104"


def test_estimate(qdq: Qdq, graph: Path) -> None:
    ran = qdq("estimate", graph, "--batch", "8")
    assert ran.code == 0 and ran.out.startswith("Estimate, NVIDIA T4 (16 GB), batch 8 x sequence 128")
    assert max(map(len, ran.out.splitlines())) <= 80
    assert qdq("estimate", graph, "--device", "l4").out.startswith("Unvalidated estimate, NVIDIA L4")
    told = json.loads(qdq("estimate", graph, "--json", "--predict").out)
    assert told["estimate_ms"]["lowered"] < told["estimate_ms"]["float32"]
    assert told["kernels"]["from"] == "predicted" and told["kernels"]["about"] == "the compiler was not asked"


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
        (("inspect", "GRAPH"), "linear.onnx: is no JSON file; give the layer_info.json"),
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
    assert ran.code == 1 and "no engine layer names 'linear.MatMul'\n1 difference\n" in ran.out
