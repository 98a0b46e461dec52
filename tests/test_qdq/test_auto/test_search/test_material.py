"""Text of a search: rows that choose and judge, labelled training rows of every task, kept outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qdq.auto.search.material import (
    Kept,
    keep_outputs,
    metric_of,
    read_judges,
    reference_scores,
    training_samples,
)
from qdq.auto.search.settings import SearchSettings
from qdq.compress.datasets import IGNORED_LABEL
from qdq.errors import ConfigError, DataError
from qdq.loading.model import LoadedModel
from qdq.loading.runner import TorchRunner

Load = Callable[..., LoadedModel]
TAGS = {"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}, "label2id": {"O": 0, "B-PER": 1, "I-PER": 2}}


@pytest.fixture
def settings(tmp_path: Path, english: tuple[str, ...]) -> SearchSettings:
    for name, texts in (("train", english[:6]), ("dev", english[6:])):
        rows = "".join(f"{text}\t{index % 2}\n" for index, text in enumerate(texts))
        (tmp_path / f"{name}.tsv").write_text(f"text\tlabel\n{rows}", encoding="utf-8")
    paths = {name: str(tmp_path / f"{name}.tsv") for name in ("train", "dev")}
    return SearchSettings(model="m", **paths, sequence=32, save_dir=str(tmp_path / "out"))


@pytest.fixture
def english() -> tuple[str, ...]:
    subjects, objects = ("the cat", "a small dog", "our teacher", "the old river"), ("the new city", "a warm meal")
    return tuple(
        f"{one} {verb} {other} ."
        for one in subjects
        for verb in ("sees", "wants", "likes", "finds")
        for other in objects
    )


def test_every_row_is_on_one_side(settings: SearchSettings, load_tiny: Load) -> None:
    judges = read_judges(settings, load_tiny())
    assert judges.choosing.samples == judges.judging.samples == 13
    ids = [
        {tuple(row) for feed in side.feeds for row in feed["input_ids"].tolist()}
        for side in (judges.choosing, judges.judging)
    ]
    assert not ids[0] & ids[1]


def test_rows_of_a_test_file_judge_and_all_of_dev_chooses(settings: SearchSettings, load_tiny: Load) -> None:
    dev, test = Path(settings.dev), Path(settings.dev).with_name("test.tsv")
    lines = dev.read_text(encoding="utf-8").splitlines()
    test.write_text("\n".join([lines[0], *reversed(lines[2:])]), encoding="utf-8")
    named = replace(settings, test=str(test))
    judges = read_judges(named, load_tiny())
    assert (judges.choosing.samples, judges.judging.samples) == (26, 25)
    assert judges.judging.source == str(test)
    test.write_text("\n".join(lines[:6]), encoding="utf-8")
    with pytest.raises(DataError, match=r"test\.tsv: has 5 rows"):
        read_judges(named, load_tiny())


def test_data_without_labels_or_with_few_rows_are_refused(settings: SearchSettings, load_tiny: Load) -> None:
    dev = Path(settings.dev)
    lines = dev.read_text(encoding="utf-8").splitlines()
    dev.write_text("\n".join(lines[:6]), encoding="utf-8")
    with pytest.raises(DataError, match="has 5 rows"):
        read_judges(settings, load_tiny())
    dev.write_text("\n".join(line.split("\t")[0] for line in lines), encoding="utf-8")
    with pytest.raises(DataError, match="a search chooses by a metric"):
        read_judges(settings, load_tiny())
    with pytest.raises(ConfigError, match="not fill-mask"):
        training_samples(settings, load_tiny(task="fill-mask"))


def test_kept_outputs_give_the_same_scores(settings: SearchSettings, load_tiny: Load, tmp_path: Path) -> None:
    loaded = load_tiny()
    judges = read_judges(settings, loaded)
    kept = {side: Kept(TorchRunner(loaded.module())) for side in ("choosing", "judging")}
    scores = {side: getattr(judges, side).score(runner) for side, runner in kept.items()}
    keep_outputs(tmp_path / "outputs.npz", kept)
    again = reference_scores(tmp_path / "outputs.npz", judges)
    for side, found in scores.items():
        assert again[side].values == found.values
        assert again[side].difference(found)[found.main].difference == 0
    assert metric_of(judges.choosing, loaded)(loaded.model) == scores["choosing"].value


def test_rows_of_a_classifier_have_their_class(settings: SearchSettings, load_tiny: Load) -> None:
    samples = training_samples(settings, load_tiny())
    assert [sample["labels"] for sample in samples] == [0, 1, 0, 1, 0, 1]
    assert {"input_ids", "attention_mask"} <= samples[0].keys()


def test_rows_of_a_tagger_have_a_class_at_first_tokens(
    settings: SearchSettings, load_tiny: Load, tmp_path: Path
) -> None:
    (tmp_path / "tags.txt").write_text("the O\ncat B-PER\nunheard I-PER\n\nour O\nriver O\n", encoding="utf-8")
    found = training_samples(
        replace(settings, train=str(tmp_path / "tags.txt")), load_tiny(task="token-classification", **TAGS)
    )
    assert found[0]["labels"] == [IGNORED_LABEL, 0, 1, 2, IGNORED_LABEL]
    assert len(found[1]["labels"]) == len(found[1]["input_ids"])


def test_rows_of_a_reader_have_the_places_of_their_answer(
    settings: SearchSettings, load_tiny: Load, tmp_path: Path
) -> None:
    context = "the cat sees a warm meal ."
    answers: list[dict[str, Any]] = [{"text": "a warm meal", "answer_start": context.index("a warm")}]
    rows = [{"id": "1", "question": "our teacher", "answers": answers}]
    (tmp_path / "squad.json").write_text(
        json.dumps({"data": [{"paragraphs": [{"context": context, "qas": rows}]}]}), encoding="utf-8"
    )
    loaded = load_tiny(task="question-answering")
    (sample,) = training_samples(replace(settings, train=str(tmp_path / "squad.json")), loaded)
    ids = sample["input_ids"][sample["start_positions"] : sample["end_positions"] + 1]
    assert loaded.tokenizer.decode(ids) == "a warm meal"
