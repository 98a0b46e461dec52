"""Texts with another answer in the engine, of every kind of answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qdq.tasks.disagreement import LONGEST, SHOWN, KeptEmbeddings, disagreements, moved
from qdq.tasks.problems import Classification
from qdq.text.data import Record


def evaluation(count: int, rows: tuple[int, ...] = ()) -> Any:
    records = [Record(f"text {index}", label=str(index)) for index in range(count)]
    problem = SimpleNamespace(records=records, right=lambda place: None)
    return SimpleNamespace(problem=problem, batches=(({}, rows),))


def scores(*answers: dict[str, Any]) -> Any:
    return SimpleNamespace(answers=tuple({"id": index, **answer} for index, answer in enumerate(answers)))


@pytest.mark.parametrize(
    ("same", "one", "two", "said"),
    [
        ({"label": "a", "probability": 0.5}, {"label": "a"}, {"label": "b"}, ("a", "b")),
        ({"labels": []}, {"labels": []}, {"labels": ["x", "y"]}, ("nothing", "x, y")),
        ({"answer": "Paris"}, {"answer": "Paris"}, {"answer": ""}, ("Paris", "nothing")),
        (
            {"words": ["a", "b"], "tags": ["O", "O"]},
            {"words": ["a", "b"], "tags": ["O", "B-PER"]},
            {"words": ["a", "b"], "tags": ["O", "O"]},
            ("b B-PER", "b O"),
        ),
        (
            {"prompt": "p", "spans": [{"text": "t", "probability": 0.9}]},
            {"spans": [{"text": "t", "probability": 0.9}]},
            {"spans": []},
            ("t", "nothing"),
        ),
    ],
)
def test_answers_that_differ_are_kept_in_words(
    same: dict[str, Any], one: dict[str, Any], two: dict[str, Any], said: tuple[str, str]
) -> None:
    surer = {**same, "probability": 0.7} if "label" in same else same  # how sure is no other answer
    found = disagreements(evaluation(2), scores(same, one), scores(surer, two))
    assert (found["count"], found["of"]) == (1, 2)
    assert found["texts"] == [{"text": "text 1", "label": "1", "fp32": said[0], "int8": said[1]}]


def test_numbers_are_no_answers_and_many_are_cut() -> None:
    assert disagreements(evaluation(1), scores({"score": 0.1}), scores({"score": 0.2})) == {
        "count": 0,
        "of": 0,
        "texts": [],
    }
    many = disagreements(evaluation(99), scores(*[{"label": "a"}] * 99), scores(*[{"label": "b"}] * 99))
    assert many["count"] == 99 and len(many["texts"]) == SHOWN


def test_embeddings_that_move_most_come_first() -> None:
    one = np.eye(3)
    two = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 0, 1]])  # the second row turns by 37 degrees
    sides = [KeptEmbeddings(lambda feeds, values=values: {"sentence_embedding": values}) for values in (one, two)]
    for side in sides:
        side({})
    found = moved(evaluation(3, rows=(2, 0, 1)), *sides)
    assert found[0] == {"text": "text 0", "cosine": pytest.approx(0.6)} and len(found) == 3
    assert moved(evaluation(3), *[KeptEmbeddings(lambda feeds: {"logits": one})] * 2) == []
    assert LONGEST >= 100


def test_a_label_is_in_the_words_of_the_answers() -> None:
    """Data have numbers, a model has names: a reader is not to translate."""
    records = [Record("text 0", label="0"), Record("text 1", label="1")]
    numbered = SimpleNamespace(problem=Classification(records, ("no", "yes"), (0, 1)), batches=())
    found = disagreements(numbered, scores({"label": "no"}, {"label": "no"}), scores({"label": "no"}, {"label": "yes"}))
    assert found["texts"] == [{"text": "text 1", "label": "yes", "fp32": "no", "int8": "yes"}]
    assert (
        Classification(records, (), (0, 1)).right(0) is None
        and Classification(records, ("no", "yes"), None).right(0) is None
    )
