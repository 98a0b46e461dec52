"""Figures of docs/accuracy.md come from what a compile leaves, and from every variant of the treatments."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qdq.studies import accuracy
from qdq.studies.accuracy import CHECKPOINT, GRAPH, OPENVINO, Way, measure_effects
from qdq.studies.accuracy_page import render
from qdq.studies.models import Case
from qdq.studies.study import load_results


@pytest.fixture
def shared(tiny_checkpoint: Callable[..., Path], jsonl_file: Path, tmp_path: Path) -> Path:
    """A folder with models/tiny and data/ as a `Case` expects them."""
    shared = tmp_path / "shared"
    shutil.copytree(tiny_checkpoint("bert", num_hidden_layers=1), shared / "models" / "tiny")
    (shared / "data").mkdir()
    rows = jsonl_file.read_text(encoding="utf-8").splitlines(keepends=True)
    for name, some in (("train.jsonl", rows[::2]), ("dev.jsonl", rows[1::2])):
        (shared / "data" / name).write_text("".join(some), encoding="utf-8")
    return shared


TINY = Case("tiny", "train.jsonl", "dev.jsonl", sequence=32)


@pytest.mark.slow
def test_a_way_is_compiled_and_each_of_its_engines_scored(shared: Path, tmp_path: Path) -> None:
    measured = tmp_path / "measured"
    ways = [Way("linear+qk", "openvino", (CHECKPOINT, GRAPH, OPENVINO))]
    accuracy.measure_figures(TINY, ways, shared, tmp_path / "work", measured)
    figures = load_results(measured)
    engines = ("onnx", "openvino", "torch")
    assert list(figures) == [f"tiny-linear+qk-openvino-{engine}" for engine in engines]
    assert len({figure["metrics"]["accuracy"]["fp32"] for figure in figures.values()}) == 1
    for figure in figures.values():
        assert (figure["kept"], figure["main"], figure["placement"]) == ([14, 20], "accuracy", "linear+qk")
        assert (
            figure["metrics"]["accuracy"]["fp32"]
            == figures["tiny-linear+qk-openvino-torch"]["metrics"]["accuracy"]["fp32"]
        )
        assert 0 < figure["closeness"]["output_mse"] < 1e-3 and figure["closeness"]["agreement"] > 0.8
    assert "| linear+qk | OpenVINO engine | 14/20 | accuracy |" in render(list(figures.values()))
    accuracy.measure_figures(TINY, ways, shared, tmp_path / "none", measured)  # all there: nothing runs
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_the_study_and_both_searches_get_their_place_on_the_page(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "decisions"
    kept.mkdir()
    for name, value in {"DECISIONS": kept, "SAMPLES": 8}.items():
        monkeypatch.setattr(accuracy, name, value)
    case = replace(TINY, texts=4)
    accuracy.measure_decisions(case, shared, tmp_path / "work")
    names = ("tiny-search-openvino", "tiny-search-tensorrt", "tiny-sensitivity")
    assert {path.name for path in kept.iterdir()} == {f"{name}{end}" for name in names for end in (".json", ".png")}
    page = render([], decisions=load_results(kept))
    assert "## Which points hurt: tiny" in page and "over training rows 5 to 12" in page
    assert "## What the search finds: tiny, openvino" in page and "Kernels and megabytes are " in page
    before = {path: path.read_bytes() for path in kept.iterdir()}
    accuracy.measure_decisions(case, shared, tmp_path / "none")  # all there: nothing runs
    assert {path: path.read_bytes() for path in kept.iterdir()} == before and not (tmp_path / "none").exists()


def test_every_variant_stands_beside_fp32(shared: Path) -> None:
    report = measure_effects(replace(TINY, texts=8), shared, ("default", "plain max"))
    assert [row["variant"] for row in report["rows"]] == ["FP32", "default", "plain max"]
    assert (report["model"], report["samples"]) == ("tiny", 8)
    assert all(row["output_mse"] > 0 for row in report["rows"][1:])
    assert "| qdqbert | default | " in render([], [report]) and "| – | FP32 | " in render([], [report])
