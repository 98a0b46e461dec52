"""What `qdq check` prints, in each format, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.lint import check_command, lint
from export.lint.render import as_text
from export.lint.rules import RULES
from qdq.errors import ConfigError, ExportError

from .graphs import fired

X = "bert.encoder.layer.0.attention.self.query.input_quantizer"
Edited = Callable[..., onnx.ModelProto]


def unsigned(graph: Any) -> None:
    graph.set(f"{X}.zero_point", np.array(128, np.uint8))


def half_quantized(graph: Any) -> None:
    for layer in (0, 1):
        for linear in ("attention.self.query", "attention.self.key", "attention.output.dense", "output.dense"):
            graph.float_operand(f"bert.encoder.layer.{layer}.{linear}.MatMul", 1)


@pytest.fixture
def save(edited: Edited, tmp_path: Path) -> Callable[..., Path]:
    def write(*edits: Callable[[Any], None]) -> Path:
        path = tmp_path / "model.onnx"
        onnx.save(edited(*edits), path)
        return path

    return write


def test_exit_codes(save: Callable[..., Path]) -> None:
    clean = save()
    assert check_command(clean, "trt11", 75)[1] == 0
    assert check_command(clean, "trt11", 75, strict=True)[1] == 0  # a note is never a failure
    slow = save(half_quantized)
    assert check_command(slow, "trt11", 75)[1] == 0
    assert check_command(slow, "trt11", 75, strict=True)[1] == 1
    wrong = save(unsigned)
    assert check_command(wrong, "trt11", 75)[1] == 1


def test_text_groups_by_rule_and_fits_the_terminal(save: Callable[..., Path]) -> None:
    text, _ = check_command(save(unsigned, half_quantized), "trt11", 75)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "errors (2)" in text
    assert text.count("QDQ-P201") == 1
    assert "QDQ-P201  linear with one quantized operand  8×" in text
    assert "      and 5 more" in text
    assert "predicted fusion map, once the errors are fixed" in text
    assert "encoder linears  4 of 12 as INT8 GEMM" in text
    assert "attention        2 of 2 as INT8 fused attention" in text
    assert "8 linear: its weight is float, only the input is quantized" in text
    assert "    compiler: confirmed: refused: " in text
    assert text.endswith("2 errors, 8 performance findings, 1 note; a prediction, no engine was built\n")


def test_long_names_are_shortened_in_the_middle(edited: Edited) -> None:
    def long(graph: Any) -> None:
        half_quantized(graph)
        for node in graph.graph.node:
            node.name = f"/model/very/deep/module/tree/{node.name}/" + "x" * 60

    text = as_text(lint(edited(long), "trt11"), "some/long/folder/" * 8 + "model.onnx")
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" in text


def test_json_holds_everything(save: Callable[..., Path], model: onnx.ModelProto) -> None:
    path = save(unsigned)
    text, _ = check_command(path, "trt10", 86, "json", sequence=256)
    report = json.loads(text)
    assert (report["file"], report["target"], report["sm"], report["sequence"]) == (str(path), "trt10", 86, 256)
    assert report["counts"] == {"error": 2, "accuracy": 0, "performance": 0, "note": 1}
    first = report["findings"][0]
    assert first["rule"] == "QDQ-E101"
    assert first["nodes"] == [f"{X}.quantize"]
    assert first["tensor"] == f"{X}.zero_point"
    assert set(first) == {"rule", "severity", "title", "nodes", "tensor", "reason", "fix", "source", "compiler"}
    assert len(report["fusion_map"]) == len(lint(model, "trt11").layers)
    assert check_command(path, "trt10", 86, "json", sequence=256)[0] == text


def test_sarif_is_well_formed(save: Callable[..., Path]) -> None:
    log = json.loads(check_command(save(unsigned, half_quantized), "trt11", 75, "sarif")[0])
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.id for rule in RULES]
    for rule in rules:
        assert rule["shortDescription"]["text"] and rule["fullDescription"]["text"] and rule["help"]["text"]
        assert rule["defaultConfiguration"]["level"] in ("error", "warning", "note")
        assert rule["properties"]["compiler"]["outcome"] in ("confirmed", "contradicted", "untested")
        assert rule.get("helpUri", "https://").startswith("https://")
    assert len(run["results"]) == 2 + 8 + 1
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] == rules[result["ruleIndex"]]["defaultConfiguration"]["level"]
        assert result["message"]["text"]
        (location,) = result["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"].endswith("model.onnx")
        assert all(place["fullyQualifiedName"] for place in location["logicalLocations"])


def test_external_data_is_read_where_it_matters(edited: Edited, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(edited(unsigned), path, save_as_external_data=True, size_threshold=0, location="model.onnx.data")
    text, code = check_command(path, "trt11", 75)
    assert (code, "QDQ-E101" in text) == (1, True)
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(ExportError, match=r"external data of '.*' cannot be read .*; copy it beside the file"):
        check_command(path, "trt11", 75)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "trt8"}, "--target: unknown value 'trt8'"),
        ({"format": "xml"}, "--format: unknown value 'xml'"),
        ({"sm": 7}, "--sm 7: write the compute capability without the point, 75 for 7.5"),
        ({"sequence": 0}, "--sequence 0: must be at least 1"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str, canonical: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        check_command(canonical, **{"target": "trt11", "sm": 75, **options})


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.onnx is not a file; give the path of an ONNX file"):
        check_command(tmp_path / "nothing.onnx", "trt11", 75)
    with (tmp_path / "large.onnx").open("wb") as file:
        file.truncate(1 << 31)  # sparse: nothing of it is written or read
    with pytest.raises(
        ExportError, match=r"large\.onnx: is over 2 GiB, which no protobuf holds; save it with its weights"
    ):
        check_command(tmp_path / "large.onnx", "trt11")
    (tmp_path / "text.onnx").write_text("this is not a model", encoding="utf-8")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name in ("text.onnx", "empty.onnx"):
        with pytest.raises(ExportError, match=rf"{name}: (cannot be read as ONNX|holds no ONNX graph)"):
            check_command(tmp_path / name, "trt11", 75)


def test_nodes_in_any_order_give_the_same_report(model: onnx.ModelProto) -> None:
    """ONNX asks for sorted nodes; TensorRT's parser sorts them itself, so the linter does too."""
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(model)
    nodes = list(reversed(model.graph.node))
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(nodes)
    report, reference = lint(shuffled, "trt11"), lint(model, "trt11")
    assert fired(report) == fired(reference)
    assert {(layer.name, layer.kind, layer.role) for layer in report.layers} == {
        (layer.name, layer.kind, layer.role) for layer in reference.layers
    }


def absent_tensor(graph: Any) -> None:
    graph.node("classifier.Gemm").input[0] = "nowhere"


def missing_input(graph: Any) -> None:
    graph.node("bert.pooler.dense.Gemm").input.pop()
    graph.node("bert.pooler.dense.Gemm").input.pop()


def cycle(graph: Any) -> None:
    graph.node("bert.embeddings.Add").input[0] = "bert.embeddings.Add_1"


def short_tensor(graph: Any) -> None:
    next(tensor for tensor in graph.graph.initializer if tensor.name == f"{X}.scale").dims.append(7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            absent_tensor,
            r"classifier\.Gemm: reads 'nowhere', which nothing makes; not a valid ONNX graph, export again",
        ),
        (missing_input, r"bert\.pooler\.dense\.Gemm: Gemm needs 2 inputs; not a valid ONNX graph"),
        (cycle, r"bert\.embeddings\.Add: reads its own result in a cycle; not a valid ONNX graph"),
        (short_tensor, rf"initializer '{X}\.scale': .*; the file is damaged, export it again"),
    ],
)
def test_what_is_no_graph_is_named(change: Callable[[Any], None], message: str, edited: Edited) -> None:
    with pytest.raises(ExportError, match=message):
        lint(edited(change), "trt11")


def test_a_linted_model_is_not_changed(model: onnx.ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    lint(model, "trt11")
    assert model.SerializeToString(deterministic=True) == before


def test_the_page_lists_every_rule() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "check.md").read_text(encoding="utf-8")
    for rule in RULES:
        assert f"| {rule.id} | {rule.title} |" in page, f"docs/check.md does not list {rule.id} {rule.title}"
