"""docs/accuracy.md is what its figures give, and a figure says what it must."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from qdq.base.artifacts import write_json
from qdq.errors import ConfigError
from qdq.studies.accuracy import main
from qdq.studies.accuracy_page import (
    PAGE,
    RESULTS,
    Figure,
    load_calibration_costs,
    load_decisions,
    load_effects,
    load_figures,
    render,
)


def figure(placement: str, drop: float) -> Figure:
    metric = {"fp32": 0.8, "int8": 0.8 - drop / 100, "drop_points": drop, "drop_interval": [drop - 1, drop + 1]}
    closeness = {"agreement": 0.99, "output_mse": 0.0175}
    return Figure("m", "engine", placement, "search", (114, 120), 408, "accuracy", {"accuracy": metric}, closeness)


def test_the_page_is_what_the_figures_give() -> None:
    page = render(load_figures(), load_effects(), load_calibration_costs(), load_decisions())
    assert page == PAGE.read_text(encoding="utf-8"), "run 'python -m qdq.studies.accuracy --page-only'"
    for found in load_figures():
        low, high = found.metrics[found.main]["drop_interval"]
        assert low <= found.metrics[found.main]["drop_points"] <= high
        assert 0 < found.kept[0] <= found.kept[1]


def test_a_figure_is_one_row_with_its_interval() -> None:
    page = render([figure("auto", 0.25)])
    assert "FP32 over 408 samples: accuracy 0.8000." in page
    assert "| auto | engine | 114/120 | accuracy | 0.7975 | +0.25 | -0.75 … +1.25 | 0.9900 | 0.0175 |" in page


def test_figures_are_read_as_they_are_written(tmp_path: Path) -> None:
    write_json(tmp_path / "one.json", asdict(figure("auto", 0.25)))
    assert render(load_figures(tmp_path)) == render([figure("auto", 0.25)])


def test_files_that_are_no_figures_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(json.dumps({"model": "m", "metrik": {}}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.json: unknown key 'metrik'; did you mean 'metrics'"):
        load_figures(tmp_path)


def test_without_the_models_it_says_where_they_are_expected(tmp_path: Path) -> None:
    before = {path.name for path in RESULTS.glob("*.json")}
    with pytest.raises(ConfigError, match="name the folder with models/ and data/"):
        main(["--shared", str(tmp_path / "none")])
    assert {path.name for path in RESULTS.glob("*.json")} == before
