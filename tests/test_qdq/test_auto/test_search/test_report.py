"""Reports of a search: the table and its notes at 80 columns, the page, the picture, and intervals of ratios."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdq.auto.search.race import interval
from qdq.auto.search.report import grouped, markdown, notes, show, write_report
from qdq.base.artifacts import read_json
from qdq.base.screen import Screen


def engine(name: str, ms: float, ratio: float, points: float) -> dict[str, Any]:
    side = {"value": 0.81, "samples": 204, "difference_points": points}
    return {
        "name": name,
        "why": "expected 1.42 x as fast",
        "strategy": "dynabert+ptq",
        "p50_ms": ms,
        "samples": 30,
        "ratio": {"value": ratio, "low": ratio - 0.02, "high": ratio + 0.02},
        "choosing": side,
        "judging": {**side, "low_points": points - 1.5, "high_points": points + 1.5},
    }


REPORT: dict[str, Any] = {
    "model": "minilm-mrpc",
    "metric": "accuracy",
    "settings": {"budget": 1800.0, "max_drop": 0.5},
    "fp32": {
        "p50_ms": 753.8,
        "samples": 9,
        "ratio": {"value": 0.33, "low": 0.32, "high": 0.34},
        **{side: {"value": 0.8137, "samples": 204} for side in ("choosing", "judging")},
    },
    "race": {
        "measured": True,
        "batch": 40,
        "sequence": 128,
        "rounds": 30,
        "threads": 2,
        "machine": {"cpu": "a CPU"},
    },
    "engines": [engine("ptq", 247.8, 1.0, -0.2), engine("width 2/3, ptq, embeddings", 174.5, 1.42, 0.0)],
    "pareto": ["width 2/3, ptq, embeddings"],
    "chosen": "width 2/3, ptq, embeddings",
    "why": "the fastest of 2 engines within 0.5 points on the choosing rows (0.00 lost)",
    "within": True,
    "not_tried": {"width 1/2, ptq": "no time left", "width 1/2, qat": "no time left"},
    "spent_s": 1501.0,
    "deployed": "out/jobs/width-2of3+ptq+embeddings/engine",
}


def test_the_table_fits_80_columns_and_says_everything(capsys: pytest.CaptureFixture[str]) -> None:
    show(Screen(), REPORT)
    text = capsys.readouterr().err
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    assert "width 2/3, ptq, embeddings * 174.5 1.42 1.40-1.44 +0.00 +0.00 -1.5 +1.5" in flat
    assert "On the judging rows, which chose nothing, it loses 0.00 points" in flat
    assert "204 development rows choose (odd ones), 204 judge (even ones)" in flat
    assert "width 1/2, ptq and 1 more: no time left" in flat
    assert REPORT["deployed"] in flat
    named = {**REPORT, "settings": {**REPORT["settings"], "test": "data/test.tsv"}}
    assert any(note.startswith("all 204 development rows choose, 204 rows of test.tsv judge") for note in notes(named))


def test_the_page_names_every_candidate_with_its_reason(tmp_path: Path) -> None:
    write_report(tmp_path, REPORT)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert page == markdown(REPORT)
    assert "| width 2/3, ptq, embeddings * | 174.5 | 1.42 |" in page
    assert "- ptq: expected 1.42 x as fast" in page
    assert "- width 1/2, ptq, width 1/2, qat: no time left" in page
    assert read_json(tmp_path / "report.json") == REPORT
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_estimates_are_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    race = {"measured": False, "device": "t4", "batch": 40, "sequence": 128}
    engines = [{**one, "samples": 0} for one in REPORT["engines"]]
    show(Screen(), {**REPORT, "race": race, "engines": engines})
    text = " ".join(capsys.readouterr().err.split())
    assert "estimate" in text and "estimated for t4" in text


def test_reasons_are_said_once() -> None:
    assert grouped({"a": "x", "b": "y", "c": "x"}) == [("x", ["a", "c"]), ("y", ["b"])]


def test_an_interval_holds_the_median_and_narrows_with_rounds() -> None:
    ratios = np.random.default_rng(1).normal(1.4, 0.1, 400)
    few, many = interval(ratios[:8]), interval(ratios)
    assert many[0] < np.median(ratios) < many[1]
    assert many[1] - many[0] < few[1] - few[0]
    assert interval(np.ones(5)) == (1.0, 1.0)
