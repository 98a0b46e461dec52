"""docs/accuracy.md shows every figure with its interval, and a figure says what it must."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdq.errors import ConfigError
from qdq.studies.accuracy import main
from qdq.studies.accuracy_page import MEASURED, Figure, render
from qdq.studies.study import load_results


def figure(placement: str, drop: float) -> Figure:
    metric = {"fp32": 0.8, "int8": 0.8 - drop / 100, "drop_points": drop, "drop_interval": [drop - 1, drop + 1]}
    return {
        "model": "m",
        "engine": "engine",
        "placement": placement,
        "kept": [114, 120],
        "samples": 408,
        "main": "accuracy",
        "metrics": {"accuracy": metric},
        "closeness": {"agreement": 0.99, "output_mse": 0.0175},
    }


def test_the_figures_hold_together() -> None:
    figures = load_results(MEASURED)
    assert figures
    for found in figures.values():
        low, high = found["metrics"][found["main"]]["drop_interval"]
        assert low <= found["metrics"][found["main"]]["drop_points"] <= high
        assert 0 < found["kept"][0] <= found["kept"][1]


def test_a_figure_is_one_row_with_its_interval() -> None:
    page = render([figure("auto", 0.25)])
    assert "FP32 over 408 samples: accuracy 0.8000." in page
    assert "| auto | engine | 114/120 | accuracy | 0.7975 | +0.25 | -0.75 … +1.25 | 0.9900 | 0.0175 |" in page


def test_without_the_models_it_says_where_they_are_expected(tmp_path: Path) -> None:
    before = {path.name for path in MEASURED.glob("*.json")}
    with pytest.raises(ConfigError, match="name the folder with models/ and data/"):
        main(["--shared", str(tmp_path / "none")])
    assert {path.name for path in MEASURED.glob("*.json")} == before
