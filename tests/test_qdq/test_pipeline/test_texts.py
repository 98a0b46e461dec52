"""Which texts calibrate and which evaluate: never the same one, and labels mean what the model's classes are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qdq.errors import DataError
from qdq.pipeline.options import CompileOptions
from qdq.pipeline.texts import Texts, calibration_texts, evaluation_texts, source_fingerprint
from qdq.tasks.labels import class_indices
from qdq.text.data import Record

TASK = "feature-extraction"


def lines(path: Path, *texts: str) -> str:
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return str(path)


def both(options: CompileOptions, task: str = TASK) -> tuple[Texts, Texts]:
    calibration = calibration_texts(options, task)
    return calibration, evaluation_texts(options, task, calibration)


def said(texts: Texts) -> list[str]:
    return [record.text for record in texts.records]


def test_bundled_text_by_default() -> None:
    calibration, evaluation = both(CompileOptions())
    assert len(calibration.records) == 128
    assert calibration.source == "bundled English text, 128 texts"
    assert evaluation.source == f"bundled held-out English text, {len(evaluation.records)} texts"
    assert len(evaluation.records) >= 32
    assert not set(said(calibration)) & set(said(evaluation))


@pytest.mark.parametrize("task", ["question-answering", "next-sentence-prediction", "multiple-choice"])
def test_pair_tasks_get_bundled_pairs(task: str) -> None:
    for texts in both(CompileOptions(), task):
        assert all(record.pair for record in texts.records)


def test_a_classifier_gets_pairs_and_single_texts() -> None:
    calibration, _ = both(CompileOptions(), "text-classification")
    assert {record.pair is None for record in calibration.records} == {True, False}


def test_evaluation_is_what_calibration_leaves_over(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.txt", *(f"text number {i}" for i in range(10)))
    calibration, evaluation = both(CompileOptions(calibration=path, samples=4, eval_samples=3))
    assert said(calibration) == [f"text number {i}" for i in range(4)]
    assert said(evaluation) == [f"text number {i}" for i in range(4, 7)]
    assert evaluation.source == f"{path} from row 5 on, 3 texts"


def test_repeated_texts_are_not_evaluated_on(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.txt", "one text", "two texts", "one text", "three texts")
    assert said(both(CompileOptions(calibration=path, samples=2))[1]) == ["three texts"]


def test_a_source_without_rest_falls_back_to_bundled_text(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.txt", "one text", "two texts", "one text")
    assert both(CompileOptions(calibration=path, samples=2))[1].source.startswith("bundled held-out English text")


def test_given_evaluation_text_loses_what_was_calibrated_on(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.txt", "one text", "two texts")
    other = lines(tmp_path / "b.txt", "two texts", "three texts")
    evaluation = both(CompileOptions(calibration=path, eval_data=other))[1]
    assert (said(evaluation), evaluation.source) == (["three texts"], f"{other} (text), 1 text")
    with pytest.raises(DataError, match=r"a\.txt: every text was calibrated on; give other text to --eval-data"):
        both(CompileOptions(calibration=path, eval_data=path))


def test_the_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"sentence1": "a b", "sentence2": "c d", "label": 1}) + "\n")
    calibration = calibration_texts(CompileOptions(calibration=str(path)), TASK)
    assert calibration.source == f"{path} (sentence1 + sentence2), 1 text"
    assert calibration.records == (Record("a b", "c d", "1"),)


# Labels

NAMES = ("negative", "positive")


def test_labels_are_names_or_numbers() -> None:
    records = [Record("a", label="positive"), Record("b", label="0"), Record("c", label="1")]
    assert class_indices(records, NAMES, 2, required=True) == ([1, 0, 1], "")
    assert class_indices(records[1:], (), 2, required=True) == ([0, 1], "")
    assert class_indices([Record("c", label="1.0")], (), 2, required=True) == ([1], "")  # a column with gaps in pandas


@pytest.mark.parametrize("label", ["neutral", "2", "-1", "1.5", None])
def test_an_unknown_label_is_no_metric_or_an_error(label: str | None) -> None:
    records = [Record("a", label="positive"), Record("b", label=label)]
    indices, reason = class_indices(records, NAMES, 2, required=False)
    assert indices is None
    assert reason.startswith("evaluation text 2 has ")
    assert "(it knows negative, positive)" in reason
    with pytest.raises(DataError, match="name another --label-column, or leave it out"):
        class_indices(records, NAMES, 2, required=True)
    assert "(it knows 0 to 2)" in class_indices([Record("a", label="x")], (), 3, required=False)[1]


# What the manifest remembers


def test_a_source_is_its_content(tmp_path: Path) -> None:
    one, two = lines(tmp_path / "one.txt", "same"), lines(tmp_path / "two.txt", "same")
    options = CompileOptions()
    assert source_fingerprint(options, one) == source_fingerprint(options, two)
    lines(tmp_path / "two.txt", "changed")
    assert source_fingerprint(options, one) != source_fingerprint(options, two)
    named = replace(options, text_columns=("a",))
    assert source_fingerprint(options, one) != source_fingerprint(named, one)
    folder = tmp_path / "folder"
    folder.mkdir()
    lines(folder / "a.txt", "same")
    before = source_fingerprint(options, str(folder)), source_fingerprint(options, f"datasets:{folder}:train")
    assert before[0] != before[1]
    lines(folder / "b.txt", "more")
    assert source_fingerprint(options, str(folder)) != before[0]
    assert source_fingerprint(options, f"datasets:{folder}:train") != before[1]
    assert source_fingerprint(options, "datasets:glue") != source_fingerprint(options, None)
