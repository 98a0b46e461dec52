"""Figures of docs/accuracy.md come from what a compile leaves, and from every variant of the treatments."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qdq.accuracy import CHECKPOINT, GRAPH, OPENVINO, Case, Measured, Way
from qdq.accuracy_page import render
from qdq.effects import main as effects


@pytest.mark.slow
def test_a_way_is_compiled_and_each_of_its_engines_scored(
    tiny_checkpoint: Callable[..., Path], jsonl_file: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shutil.copytree(tiny_checkpoint("bert", num_hidden_layers=1), shared / "models" / "tiny")
    (shared / "data").mkdir()
    rows = jsonl_file.read_text(encoding="utf-8").splitlines(keepends=True)
    for name, some in (("train.jsonl", rows[::2]), ("dev.jsonl", rows[1::2])):
        (shared / "data" / name).write_text("".join(some), encoding="utf-8")
    measured = Measured(Case("tiny", "train.jsonl", "dev.jsonl", sequence=32), shared, tmp_path / "work")
    engines = (CHECKPOINT, GRAPH, OPENVINO)
    figures = dict(measured.figures(Way("linear+qk", "openvino", engines)))
    assert tuple(figures) == engines
    for figure in figures.values():
        assert (figure.kept, figure.main, figure.placement) == ((14, 20), "accuracy", "linear+qk")
        assert figure.metrics["accuracy"]["fp32"] == measured.floating().scores.value
        assert 0 < figure.closeness["output_mse"] < 1e-3 and figure.closeness["agreement"] > 0.8
    assert "| linear+qk | OpenVINO engine | 14/20 | accuracy |" in render(list(figures.values()))


def test_every_variant_stands_beside_fp32(
    tiny_checkpoint: Callable[..., Path], jsonl_file: Path, tmp_path: Path
) -> None:
    data, out = str(jsonl_file), tmp_path / "effects.json"
    words = ["--model", str(tiny_checkpoint("bert")), "--calibration", data, "--eval-data", data, "--out", str(out)]
    words += ["--placements", "linear", "--only", "default,plain max", "--samples", "8", "--sequence", "32"]
    assert effects([*words, "--threads", "1"]) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    assert [row["variant"] for row in report["rows"]] == ["FP32", "default", "plain max"]
    assert all(row["output_mse"] > 0 for row in report["rows"][1:])
    assert "| linear | default | " in render([], [report]) and "| – | FP32 | " in render([], [report])
