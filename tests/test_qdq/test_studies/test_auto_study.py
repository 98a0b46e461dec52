"""`make auto`: the table of its records, the data of the run by hand, and which parts are measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdq.auto.search.settings import SearchSettings
from qdq.base.artifacts import read_json, write_json
from qdq.studies import auto
from qdq.studies.auto import AUTO, FP32, HAND, INT8, PARTS, Places, _dataset, _steps, main
from qdq.studies.auto_page import HEADERS, auto_table
from qdq.text.data import TextSource, read_records


def engine(ms: float, ratio: float, points: float) -> dict[str, Any]:
    side = {"value": 0.8 + points / 100, "samples": 204, "difference_points": points}
    side |= {"low_points": points - 1, "high_points": points + 1}
    found = {"p50_ms": ms, "ratio": {"value": ratio, "low": ratio - 0.01, "high": ratio + 0.01}}
    return {**found, "choosing": side, "judging": side}


def record() -> dict[str, Any]:
    tried = [{"name": "ptq", "width": "1", "strategy": "ptq"}, {"name": "width 2/3, ptq", "width": "2/3"}]
    tried[1]["strategy"] = "dynabert+ptq"
    sides = {side: {"value": 0.8, "samples": 204} for side in ("choosing", "judging")}
    return {
        "search": {
            "engines": [{**one, **engine(200, 1.0, 0.0)} for one in tried],
            "chosen": "width 2/3, ptq",
            "why": "the fastest",
            "metric": "accuracy",
            "fp32": sides,
            "settings": {"budget": 1800.0},
            "wall_s": 1700.0,
        },
        "hand": {"wall_s": 900.0},
        "race": {
            "batch": 40,
            "sequence": 128,
            "rounds": 30,
            "threads": 2,
            "machine": {"cpu": "a CPU"},
            "versions": {},
            "engines": {
                FP32: {"p50_ms": 600.0, "ratio": {"value": 0.25, "low": 0.2, "high": 0.3}, **sides},
                INT8: engine(200.0, 1.0, 0.0),
                AUTO: engine(140.0, 1.5, -0.25),
                HAND: engine(160.0, 1.25, -0.5),
            },
        },
        "t4": {"device": "t4", "estimate_ms": {FP32: 40.0, "FP16": 12.0, INT8: 8.0, AUTO: 5.0, HAND: 6.4}},
    }


def test_the_table_has_a_row_per_engine_and_averages_over_models() -> None:
    text = auto_table({"minilm-conll": record(), "minilm-mrpc": record()})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 * 4 + 4 and {len(row) for row in rows} == {len(HEADERS)}
    assert rows[4] == [
        *("minilm-conll", "automatic: dynabert+ptq, width 2/3", "0.7975", "+0.25 [-0.75, +1.25]", "140.0"),
        *("6.00", "1.50 [1.49, 1.51]", "5.00", "8.00", "1.60"),
    ]
    assert rows[-2] == ["average", "automatic", "0.7975", "+0.25", "140.0", "6.00", "1.50", "5.00", "8.00", "1.60"]
    assert "204 rows choose, 204 judge" in text and "30 minutes each" in text


def test_a_record_that_is_not_whole_is_no_row() -> None:
    part = {key: value for key, value in record().items() if key != "t4"}
    assert auto_table({"minilm-mrpc": part}) == auto_table({}) == "Not measured yet."


def test_the_run_by_hand_develops_on_the_rows_that_choose(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("text\tpair\tlabel\na\tb\t1\n", encoding="utf-8")
    rows = "".join(f"text {index}\tother\t{index % 2}\n" for index in range(5))
    (tmp_path / "dev.tsv").write_text(f"text\tpair\tlabel\n{rows}", encoding="utf-8")
    (tmp_path / "tags.txt").write_text("the O\ncat B-PER\n\nour O\n\nriver O\n", encoding="utf-8")
    settings = SearchSettings(model="m", train=str(tmp_path / "train.tsv"), dev=str(tmp_path / "dev.tsv"))
    folder = _dataset(settings, tmp_path / "pairs")
    found, _ = read_records(TextSource(str(folder / "dev.tsv")))
    assert [(one.text, one.pair, one.label) for one in found] == [
        (f"text {index}", "other", str(index % 2)) for index in (0, 2, 4)
    ]
    tagged = SearchSettings(model="m", train=str(tmp_path / "tags.txt"), dev=str(tmp_path / "tags.txt"))
    found, _ = read_records(TextSource(str(_dataset(tagged, tmp_path / "tags") / "dev.txt")))
    assert [(one.words, one.tags) for one in found] == [(("the", "cat"), ("O", "B-PER")), (("river",), ("O",))]


def test_steps_by_hand_are_the_documented_ones_or_what_the_budget_has_time_for(tmp_path: Path) -> None:
    costs = {"step": {"seconds": 0.5, "teacher": 0.1, "bf16": False}, "rows": 3668, "batch": 32}
    write_json(tmp_path / "minilm-mrpc" / "search" / "jobs" / "fp32" / "result.json", costs)
    assert _steps(Places(tmp_path, tmp_path, tmp_path, budget=1800), "minilm-mrpc") is None  # 3 epochs of 58 steps
    assert _steps(Places(tmp_path, tmp_path, tmp_path, budget=320), "minilm-mrpc") == 100  # 80 s of 0.8


def test_only_what_is_missing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fake(part: str) -> Callable[[Places, str], dict[str, Any]]:
        return lambda places, name: asked.append(f"{name}:{part}") or {"budget": places.budget}  # type: ignore[func-returns-value]

    monkeypatch.setattr(auto, "PARTS", {part: fake(part) for part in PARTS})
    write_json(tmp_path / "minilm-mrpc.json", {"search": {}, "hand": {}, "race": {}})
    options = ["--results", str(tmp_path), "--work", str(tmp_path / "work"), "--budget", "5m"]
    main(options)
    assert asked == ["minilm-mrpc:t4", *(f"minilm-conll:{part}" for part in PARTS)]
    assert read_json(tmp_path / "minilm-mrpc.json")["t4"] == {"budget": 300.0}
    asked.clear()
    main([*options, "--only", "minilm-mrpc:race"])
    assert asked == ["minilm-mrpc:race"]
