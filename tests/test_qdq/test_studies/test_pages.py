"""Every generated table of README.md and docs/ is what the recorded results give, and those are good enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qdq.errors import ConfigError, DataError
from qdq.studies.markdown import filled, table
from qdq.studies.pages import LINTER, ROWS, pages
from qdq.studies.prove import CAPABILITIES, RANDOM
from qdq.studies.study import RESULTS, exit_code, load_results


def test_the_pages_are_what_the_results_give() -> None:
    found = pages()
    names = {"README.md", "accuracy.md", "check.md", "compression.md", "documents.md", "estimate.md"}
    names |= {"performance.md", "tensorrt.md", "triton.md", "uie.md"}
    assert {path.name for path in found} == names
    for path, text in found.items():
        assert text == path.read_text(encoding="utf-8"), f"{path.name}: run 'python -m qdq.studies.pages'"


def test_a_table_has_its_empty_cells() -> None:
    assert table(["", "ms"], [["a", 1], ["b", ""]], "--:") == "| | ms |\n|---|--:|\n| a | 1 |\n| b | |"


def test_a_page_is_filled_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x:begin, written by `make` -->\nold\n<!-- x:end -->\nb\n")
    assert filled(page, {"x": r"new \1"}) == "a\n<!-- x:begin, written by `make` -->\nnew \\1\n<!-- x:end -->\nb\n"
    with pytest.raises(DataError, match=r"page\.md: has no '<!-- y:begin.*restore the markers"):
        filled(page, {"y": "new"})


def test_a_study_ends_with_one_line_and_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> None:
        raise ConfigError("--shared: is not there")

    def broken() -> None:
        raise DataError("page.md: has no markers")

    assert [exit_code(main) for main in (lambda: None, broken, wrong)] == [0, 1, 2]
    assert capsys.readouterr().err == "page.md: has no markers\n--shared: is not there\n"


def test_the_tensorrt_graphs_were_proved() -> None:
    """Findings of `make prove` on real models: the same acceptance the tests hold a tiny graph to."""
    results = load_results(RESULTS / "tensorrt")
    assert results.pop(LINTER)["graphs"] >= 200
    assert results.pop(ROWS)["rows"]
    assert set(results) == {"all-MiniLM-L6-v2", "minilm-mrpc", RANDOM}
    for name, result in results.items():
        lint, removals, half = result["lint"], result["removals"], result["fp16"]
        assert (lint["findings"]["error"], lint["findings"]["performance"]) == (0, 0), name
        layers = lint["layers"]
        one_row = int(name == "minilm-mrpc")  # a classifier's last attention has one query row, which none fuses
        assert lint["fused_attentions"] == layers - one_row, name
        assert lint["int8"]["linears"] == [6 * layers, 6 * layers], name
        # The operands of residual adds are asked for by this placement and save nothing
        assert removals["points"] == 20 * layers and removals["breaking"]["0"] == 4 * layers, name
        assert sum(removals["breaking"].values()) == removals["points"], name
        assert half["worst_ulp"] <= 4 and half["largest"] < 65504, name
    metrics = results["minilm-mrpc"]["fp16"]["metric"]
    for metric in metrics.values():
        # By the error of the logits: a few answers of 408 change sides by chance
        assert metric["texts"] >= 400 and metric["agreement"] >= 0.97
        assert metric["fp16_body_mse"] <= 1.25 * metric["fp32_body_mse"]


def test_the_tensorrt_graphs_were_compiled_for_five_capabilities() -> None:
    """Every linear INT8, every scale FP32, and layers with at most the kernels and bytes of FP16's."""
    results = load_results(RESULTS / "tensorrt")
    for name in ("all-MiniLM-L6-v2", "minilm-mrpc", RANDOM):
        for engines in results[name]["compiled"].values():
            assert {int(capability) for capability in engines} == set(CAPABILITIES), name
            for engine in engines.values():
                linears, attentions = engine["linears"], engine["attentions"]
                assert linears[0] == linears[1] and engine["fp32_scales"] == linears, name
                assert attentions[1] - attentions[0] == int(name == "minilm-mrpc"), name
                layer = engine["middle_layer"]
                assert layer["kernels"] <= 9 and layer["megabytes"] <= (236 if name == RANDOM else 116), name
                assert engine["peak_mb"] <= 1024, name


def test_results_are_outcomes_of_compile() -> None:
    assert list(RESULTS.glob("*.json"))
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        assert result["exit_code"] == 0
        assert result["benchmark"]["contestants"]["int8"]["samples"] >= 3
