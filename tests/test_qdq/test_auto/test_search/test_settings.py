"""Settings of a search: what is refused, and which of them a search that continues must share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qdq.auto.search.settings import SearchSettings, from_json, seconds
from qdq.errors import ConfigError

SETTINGS = SearchSettings(model="m", train="train.tsv", dev="dev.tsv", text_columns=("a", "b"))


@pytest.mark.parametrize(("text", "wanted"), [("30m", 1800), ("90", 90), ("90s", 90), ("1.5h", 5400)])
def test_durations(text: str, wanted: float) -> None:
    assert seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "soon", "0m", "-3", "5d"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ConfigError, match="--budget"):
        seconds(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "openvin"}, "--target.*openvino"),
        ({"launcher": "slrum"}, "--launcher.*slurm"),
        ({"budget": 0.0}, "--budget"),
        ({"max_drop": -1.0}, "--max-drop"),
        ({"dev": "train.tsv"}, "cannot choose or judge"),
        ({"test": "dev.tsv"}, "--test names text that trains or chooses"),
        ({"train": ""}, "--train: is empty"),
    ],
)
def test_values_that_cannot_be_meant(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SETTINGS, **change).validate()


def test_a_process_that_starts_elsewhere_gets_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.tsv").touch()
    found = replace(SETTINGS, model="org/model", dev="datasets:glue mrpc:validation", save_dir="out").absolute
    assert (found.model, found.dev) == ("org/model", "datasets:glue mrpc:validation")
    assert (found.train, found.save_dir) == (str(tmp_path / "train.tsv"), str(tmp_path / "out"))


def test_json_and_back() -> None:
    SETTINGS.validate()
    assert from_json(SETTINGS.as_json()) == SETTINGS
    more = replace(SETTINGS, budget=5.0, save_dir="elsewhere", launcher="ray")
    assert more.deciding == SETTINGS.deciding
    assert replace(SETTINGS, max_drop=1.0).deciding != SETTINGS.deciding
