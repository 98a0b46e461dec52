"""A compiler's account below the linter's report: in every format, with the differences by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.lint import CompiledGraph, LintReport, check_compiled_command, lint
from export.lint.compiled import LayerCost, Refusal, as_text, differences
from export.lint.limits import Platform
from qdq.errors import ConfigError

PLATFORM = Platform("trt11", 75, 128)
Edited = Callable[..., onnx.ModelProto]
QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def report(edited: Edited) -> LintReport:
    return lint(edited(), "trt11")


def agreeing(report: LintReport) -> CompiledGraph:
    """An account that says of every layer what the linter has predicted."""
    verdicts = {"int8_gemm": "int8", "float_gemm": "fp16 x fp16", "int8_fused_attention": "int8"}
    multiplications = {layer.name: verdicts[layer.kind] for layer in report.layers if layer.kind.endswith("_gemm")}
    return CompiledGraph(
        compiler="TensorRT for RTX 1.7.1",
        sm=75,
        shape="40 x 128",
        layers=(LayerCost(0, 11, 127.63), LayerCost(1, 11, 127.63), LayerCost(None, 3, 0.42)),
        linears=multiplications,
        attentions={layer.name: verdicts[layer.kind] for layer in report.layers if "attention" in layer.kind},
        scales=dict.fromkeys((name for name, verdict in multiplications.items() if verdict == "int8"), True),
        reads={layer.name: ("fp16", "int8") for layer in report.layers if layer.kind == "residual_add"},
    )


def unsigned(graph: Any) -> None:
    graph.set(f"{QUERY}.input_quantizer.zero_point", np.array(128, np.uint8))


def test_an_account_that_agrees(report: LintReport) -> None:
    compiled = agreeing(report)
    assert differences(report, compiled) == ()
    text = as_text(report, compiled)
    assert "  kernels          25, 255.7 MB\n" in text
    assert "  layers 0 to 1    11, 127.6 MB each\n  outside          3, 0.4 MB\n" in text
    assert f"  GEMM scales      {len(compiled.scales)} of {len(compiled.scales)} in FP32\n" in text
    assert "linter and compiler agree" in text


def test_every_difference_is_named(report: LintReport) -> None:
    compiled = agreeing(report)
    softmax = next(iter(compiled.attentions))
    add = next(iter(compiled.reads))
    other = replace(
        compiled,
        linears={**compiled.linears, f"{QUERY}.MatMul": "quantized in the graph, but the plan multiplies fp16 x fp16"},
        attentions={**compiled.attentions, softmax: "fused, but reads fp16"},
        reads={**compiled.reads, add: ("fp16", "fp16")},
        scales=dict.fromkeys(compiled.scales, False),
    )
    found = differences(report, other)
    assert {(item.node, item.linter) for item in found} == {
        (f"{QUERY}.MatMul", "INT8 GEMM"),
        (softmax, "INT8 fused attention"),
        (add, "residual add on INT8"),
    }
    text = as_text(report, other)
    assert max(map(len, text.splitlines())) <= 80
    assert "linter and compiler differ (3)" in text
    assert "0 of 12 in FP32; the others write INT32 sums as 16 bits" in text
    assert "linter: residual add on INT8; compiler: its kernel reads fp16 and fp16" in text


def test_a_layer_the_compiler_does_not_name_is_a_difference(report: LintReport) -> None:
    compiled = agreeing(report)
    blind = replace(compiled, linears={}, attentions={}, reads={})
    assert len(differences(report, blind)) == len(compiled.linears) + len(compiled.attentions) + len(compiled.reads)


def test_nodes_without_names(edited: Edited) -> None:
    def anonymous(graph: Any) -> None:
        for node in graph.graph.node:
            node.name = ""

    report = lint(edited(anonymous), "trt11")
    compiled = agreeing(report)

    def named(mapping: Any) -> dict[str, Any]:
        return {f"node_of_{name.partition(' -> ')[2]}": value for name, value in mapping.items()}

    renamed = replace(
        compiled, **{part: named(getattr(compiled, part)) for part in ("linears", "attentions", "reads", "scales")}
    )
    assert differences(report, renamed) == ()


def test_refusals_against_the_linters_errors(edited: Edited, report: LintReport) -> None:
    refused = CompiledGraph("TensorRT", 75, "40 x 128", (Refusal("mi", "MatMulInteger", "not supported"),))
    (missed,) = differences(report, refused)
    assert (missed.linter, missed.compiler) == ("no error", "refused")
    wrong = lint(edited(unsigned), "trt11")
    assert differences(wrong, refused) == ()
    taken = differences(wrong, agreeing(wrong))
    assert {(item.linter.split("-")[0], item.compiler) for item in taken} == {("error QDQ", "compiled")}
    assert "refused (1)\n  MatMulInteger mi\n    not supported\n" in as_text(report, refused)


@pytest.fixture
def clean(edited: Edited, tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(edited(), path)
    return path


def test_a_refused_graph_fails(clean: Path, report: LintReport) -> None:
    refused = CompiledGraph("TensorRT", 75, "40 x 128", (Refusal("", "", "no bf16"),))
    assert check_compiled_command(clean, PLATFORM, lambda _: refused)[1] == 1
    text, code = check_compiled_command(clean, PLATFORM, lambda _: agreeing(report))
    assert code == 0
    assert text.index("predicted fusion map") < text.index("TensorRT for RTX 1.7.1, SM 75, 40 x 128")


def test_formats(clean: Path, report: LintReport) -> None:
    refused = CompiledGraph("TensorRT", 75, "40 x 128", (Refusal("mi", "MatMulInteger", "not supported"),))
    told = json.loads(check_compiled_command(clean, PLATFORM, lambda _: agreeing(report), "json")[0])
    assert told["compiled"]["kernels"] == 25
    assert told["compiled"]["linears"][f"{QUERY}.MatMul"] == "int8"
    assert told["compiled"]["differences"] == []
    (run,) = json.loads(check_compiled_command(clean, PLATFORM, lambda _: refused, "sarif")[0])["runs"]
    levels = {result["ruleId"]: result["level"] for result in run["results"] if result["ruleId"].startswith("compiler")}
    assert levels == {"compiler-refusal": "error", "compiler-difference": "note"}
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].endswith("model.onnx")
    with pytest.raises(ConfigError, match="--format"):
        check_compiled_command(clean, PLATFORM, lambda _: refused, "xml")
