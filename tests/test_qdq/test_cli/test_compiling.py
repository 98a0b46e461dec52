"""`qdq check --compile` with the real compiler: its account, refusals, mistakes, and what is said without it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.tensorrt_rtx import libraries
from qdq.cli.compiling import describe, shapes_of
from qdq.errors import ConfigError

from .test_file_commands import write_graph

Qdq = Callable[..., Any]


@pytest.fixture
def compiler() -> None:
    if (reason := libraries.missing()) is not None:
        pytest.skip(reason)


@pytest.mark.usefixtures("compiler")
def test_a_graph_is_compiled(qdq: Qdq, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "linear.onnx")
    ran = qdq("check", graph, "--compile", "--sm", "89", "--shape", "4x16")
    assert ran.code == 0, ran.err
    assert re.fullmatch(r"  compile +\d+\.\d s  \d+ kernels\n", ran.err)
    assert ", SM 89, 4 x 16\n" in ran.out
    assert "  encoder linears  1 of 1 in INT8\n" in ran.out
    assert "  GEMM scales      1 of 1 in FP32\n" in ran.out
    assert max(len(line) for line in ran.out.splitlines() if str(graph) not in line) <= 80
    told = json.loads(qdq("check", graph, "--compile", "--sm", "89", "--format", "json").out)
    assert told["compiled"]["linears"] == {"linear.MatMul": "int8"}
    profile = qdq("check", graph, "--compile", "--sm", "89", "--shape", "1x1,4x16,8x32")
    assert ", SM 89, 1 x 1 to 8 x 32, made for 4 x 16\n" in profile.out
    assert " MB" not in profile.out


@pytest.mark.usefixtures("compiler")
def test_a_refused_graph_counts_as_an_error(qdq: Qdq, tmp_path: Path) -> None:
    ran = qdq("check", write_graph(tmp_path / "linear.onnx"), "--compile")  # FP32, on Turing
    assert ran.code == 1
    assert "refused (1)\n  MatMul linear.MatMul\n" in ran.out
    assert "FP32 GEMM is not supported" in " ".join(ran.out.split())


@pytest.mark.usefixtures("compiler")
def test_mistakes(qdq: Qdq, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "linear.onnx")
    for options, message in (
        (("--compile", "--sm", "90"), "compute capability 90: TensorRT for RTX "),
        (("--compile", "--shape", "40"), "--shape 40: expected batch x sequence such as 40x128"),
        (("--shape", "40x128"), "--shape: only --compile needs sizes"),
    ):
        ran = qdq("check", graph, *options)
        assert (ran.code, ran.out) == (2, "")
        assert message in ran.err and ran.err.count("\n") == 1


def test_without_the_compiler(qdq: Qdq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "PACKAGES", (("some-package", "surely_no_such_module"),) * 2)
    ran = qdq("check", write_graph(tmp_path / "linear.onnx"), "--compile")
    assert ran.code == 3
    assert "pip install '.[rtx]'" in ran.err and ran.err.count("\n") == 1


def test_shapes() -> None:
    assert describe(shapes_of("40x128")) == "40 x 128"
    assert describe(shapes_of("1x1, 40x128, 40x384")) == "1 x 1 to 40 x 384, made for 40 x 128"
    for wrong in ("40", "40x128,40x256", "axb", "", "40x128x2"):
        with pytest.raises(ConfigError, match="--shape"):
            shapes_of(wrong)
    with pytest.raises(ConfigError, match="minimum <= optimum"):
        shapes_of("8x8,4x4,8x8")
