"""UIE's metric over prompt files: against hand-made outputs, with classes, parts and unlabelled rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdq.errors import ConfigError, DataError
from qdq.loading.model import LoadedModel
from qdq.tasks.loading import EvaluationSettings, load_evaluation
from qdq.uie.prompts import kind_of

ROWS = [
    ("the cat", "our teacher likes the cat", ["teacher", "cat"]),
    ("a dog of cat", "the cat finds a small dog", ["dog"]),
    ("bread", "the cat finds a small dog", []),
    ("house[blue,new]", "the blue house", [(-10, -6)]),
]


def prompt_file(folder: Path, rows: Sequence[tuple[str, str, Sequence[Any]]] = ROWS, bare: int = 0) -> Path:
    """A prompt file; answers are words of the content, or places."""
    path = folder / "prompts.txt"
    lines = []
    for number, (prompt, content, answers) in enumerate(rows):
        places = [(content.index(a), content.index(a) + len(a)) if isinstance(a, str) else a for a in answers]
        found = [{"text": "", "start": start, "end": end} for start, end in places]
        row = {"content": content, "prompt": prompt, "result_list": found}
        lines.append(json.dumps(row if number >= bare else {k: v for k, v in row.items() if k != "result_list"}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def uie(load_tiny: Callable[..., LoadedModel]) -> LoadedModel:
    return load_tiny("ernie", "information-extraction")


class Known:
    """A runner that marks, for every row, what `spans` says: (first, last) tokens by the row's ids."""

    def __init__(self, spans: Mapping[tuple[int, ...], Sequence[tuple[int, int]]]) -> None:
        self.spans = spans

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        start, end = (np.full(feeds["input_ids"].shape, 0.01) for _ in range(2))
        for row, (ids, mask) in enumerate(zip(feeds["input_ids"], feeds["attention_mask"], strict=True)):
            for first, last in self.spans.get(tuple(ids[mask == 1]), ()):
                start[row, first], end[row, last] = 0.9, 0.7
        return {"start_prob": start, "end_prob": end}


def test_metrics_by_hand(uie: LoadedModel, tmp_path: Path) -> None:
    evaluation = load_evaluation(
        str(prompt_file(tmp_path)), uie, EvaluationSettings(sequence=64, batch=2, required=True)
    )
    parts = evaluation.problem._parts  # type: ignore[attr-defined]  # whose tokens the runner marks
    right = {tuple(part.tokens["input_ids"]): list(zip(part.starts, part.ends, strict=True)) for part in parts}
    perfect = evaluation.score(Known(right))
    assert perfect.main == "f1" and perfect.values == {"f1": 1.0, "precision": 1.0, "recall": 1.0}
    assert perfect.answers[3]["spans"] == [
        {"text": "blue", "start": -10, "end": -6, "probability": pytest.approx(0.63)}
    ]
    assert [span["text"] for span in perfect.answers[0]["spans"]] == ["teacher", "cat"]
    # One answer missed, one found where there is none
    keys = list(right)
    right[keys[0]] = right[keys[0]][:1]
    right[keys[2]] = [(3, 4)]
    scores = evaluation.score(Known(right))
    assert scores.values == {"f1": 2 * 3 / (4 + 4), "precision": 3 / 4, "recall": 3 / 4}
    assert scores.difference(perfect)["f1"].difference == pytest.approx(-25)


def test_classes_are_those_of_prompts_with_answers(uie: LoadedModel, tmp_path: Path) -> None:
    evaluation = load_evaluation(str(prompt_file(tmp_path)), uie, EvaluationSettings(sequence=64))
    reader = evaluation.reader(Known({}))
    for feed in evaluation.feeds:
        reader(feed)
    found = reader.classes(lambda record: kind_of(record.text, str(record.pair), "en"))
    assert list(found) == ["a dog of X", "house", "the cat"]
    assert found["the cat"] == {"f1": 0.0, "precision": 0.0, "recall": 0.0}


def test_a_long_content_is_one_sample(uie: LoadedModel, tmp_path: Path) -> None:
    content = "the cat finds the blue house . " * 4 + "our teacher"
    path = prompt_file(tmp_path, [("who", content, ["teacher"])])
    evaluation = load_evaluation(str(path), uie, EvaluationSettings(sequence=32))
    assert evaluation.samples == 1 and sum(len(rows) for _, rows in evaluation.batches) > 3
    assert evaluation.notes[-1].endswith("rows for 1 prompts")


def test_answers_that_are_missing_or_wrong(uie: LoadedModel, tmp_path: Path) -> None:
    required = EvaluationSettings(sequence=64, required=True)
    with pytest.raises(DataError, match="1 of 4 prompts have no result_list"):
        load_evaluation(str(prompt_file(tmp_path, bare=1)), uie, required)
    unlabelled = load_evaluation(str(prompt_file(tmp_path, bare=4)), uie, required)
    assert not unlabelled.labelled and "4 of 4 prompts" in unlabelled.reason
    with pytest.raises(DataError, match="correct its offsets"):
        load_evaluation(str(prompt_file(tmp_path, [("q", "the cat", [(3, 99)])])), uie, required)
    with pytest.raises(ConfigError, match="--metric for information-extraction"):
        load_evaluation(str(prompt_file(tmp_path)), uie, replace(required, metric="accuracy"))
