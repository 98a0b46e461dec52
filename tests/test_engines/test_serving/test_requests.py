"""Requests as rows of texts: what cannot be meant is refused with the name of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from engines.serving.fault import Fault
from engines.serving.requests import read


def column(*rows: Any) -> Any:
    return np.array([[text.encode() for text in (row if isinstance(row, tuple) else (row,))] for row in rows], object)


def test_rows_of_pairs(form: Any) -> None:
    asked = read(form(), {"TEXT": column("a", "b"), "TEXT_PAIR": column("c", "d")}, "")
    assert [(text.one, text.two, text.where) for (text,) in asked.samples] == [("a", "c", "row 0"), ("b", "d", "row 1")]


def test_a_pair_may_be_missing(form: Any) -> None:
    ((text,),) = read(form(), {"TEXT": column("a"), "TEXT_PAIR": None}, '{"truncation": "cut"}').samples
    assert (text.two, text.cut) == (None, True)


def test_choices_are_pairs_of_their_text(form: Any) -> None:
    (sample,) = read(form(task="multiple-choice"), {"TEXT": column("a"), "CHOICES": column(("b", "c"))}, "").samples
    assert [(text.one, text.two, text.where) for text in sample] == [
        ("a", "b", "row 0, choice 0"),
        ("a", "c", "row 0, choice 1"),
    ]


@pytest.mark.parametrize(
    ("changes", "tensors", "parameters", "said"),
    [
        ({}, {"TEXT": column()}, {}, "at least one"),
        ({}, {"TEXT": None}, {}, "input TEXT is missing"),
        ({"task": "question-answering"}, {"QUESTION": column("a")}, {}, "CONTEXT is missing; .*QUESTION, CONTEXT"),
        ({}, {"TEXT": column("a"), "TEXT_PAIR": column("a", "b")}, {}, "as many of each"),
        ({}, {"TEXT": np.array([[b"\xff"]], object)}, {}, "TEXT is not UTF-8"),
        ({"task": "multiple-choice"}, {"TEXT": column("a"), "CHOICES": column(())}, {}, "row 0: CHOICES is empty"),
        ({}, {"TEXT": column("a")}, {"truncate": "cut"}, "unknown parameter truncate; known: truncation, dimensions"),
        ({}, {"TEXT": column("a")}, {"truncation": True}, "truncation is True; it is one of error, cut"),
        ({}, {"TEXT": column("a")}, {"dimensions": 8}, "dimensions is for embeddings, this model does text-class"),
        ({"task": "feature-extraction"}, {"TEXT": column("a")}, {"dimensions": 8}, "not trained for shorter"),
        (
            {"task": "feature-extraction", "dimensions": (8, 16)},
            {"TEXT": column("a")},
            {"dimensions": 12},
            "dimensions 12: it was trained for 8, 16",
        ),
        ({"task": "feature-extraction"}, {"TEXT": column("a")}, {"dimensions": "8"}, "it is a whole number"),
    ],
)
def test_what_cannot_be_meant_is_a_fault(
    form: Any, changes: dict[str, Any], tensors: dict[str, Any], parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(Fault, match=said):
        read(form(**changes), tensors, json.dumps(parameters))
