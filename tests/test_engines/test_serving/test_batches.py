"""Texts of unequal length run together with little padding, and each gets its own outputs back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.serving.batches import groups, run
from engines.serving.tokens import Text, Tokenizer


@given(st.lists(st.integers(1, 512), max_size=60), st.integers(1, 40), st.booleans())
def test_every_text_is_in_one_group_that_the_engine_takes(lengths: list[int], most: int, packed: bool) -> None:
    found = groups(lengths, most, packed)
    assert sorted(text for group in found for text in group) == list(range(len(lengths)))
    assert all(0 < len(group) <= most for group in found)


def test_short_and_long_texts_run_apart_once_a_group_is_worth_a_call() -> None:
    lengths = [100, 10] * 30
    short, *long = groups(lengths, 40, packed=False)
    assert {lengths[text] for text in short} == {10}
    assert {lengths[text] for group in long for text in group} == {100}
    assert groups([10, 100], 40, packed=False) == [[0, 1]]  # 110 tokens are not worth two calls
    assert groups(lengths, 40, packed=True) == [list(range(40)), list(range(40, 60))]


@pytest.mark.parametrize("buckets", [(), (4, 8)])
def test_outputs_go_back_to_their_texts(tokenizer_file: Path, form: Any, buckets: tuple[int, ...]) -> None:
    shape = form(task="token-classification", buckets=buckets)
    words = ("cat", "the cat sees a dog", "a dog", "the small cat sees")
    rows = Tokenizer(tokenizer_file, shape).encode([Text(text, None, "") for text in words])
    widths = []

    def engine(feeds: Any) -> Any:
        widths.append(feeds["input_ids"].shape[1])
        return {"logits": np.stack([feeds["input_ids"], feeds["attention_mask"]], axis=-1).astype(np.float32)}

    outputs = run(engine, shape, [[row] for row in rows], 3)
    for row, found in zip(rows, outputs, strict=True):
        assert found["logits"][:, 0].tolist() == row.encoding.ids
        assert found["logits"][:, 1].all()
    assert widths == ([6, 7] if not buckets else [8, 8])


def test_choices_of_unequal_number_run_apart(tokenizer_file: Path, form: Any) -> None:
    shape = form(task="multiple-choice")
    texts = [Text("the cat", word, "") for word in ("a", "dog", "sees", "small", "in")]
    rows = Tokenizer(tokenizer_file, shape).encode(texts)
    samples, shapes = [rows[:2], rows[2:]], []

    def engine(feeds: Any) -> Any:
        shapes.append(feeds["input_ids"].shape)
        return {"logits": feeds["input_ids"].sum(axis=-1).astype(np.float32)}

    outputs = run(engine, shape, samples, 8)
    assert shapes == [(1, 2, 6), (1, 3, 6)]
    assert [len(found["logits"]) for found in outputs] == [2, 3]
