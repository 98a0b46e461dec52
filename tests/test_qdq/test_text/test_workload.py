"""Benchmark batches: exact shapes, real text, rows that differ, and full rows without a padded token."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import BertTokenizer

from qdq.errors import ConfigError, DataError
from qdq.text.data import Record, bundled, read_records
from qdq.text.encode import encode_batch
from qdq.text.workload import full_rows, workload_of_shape

from .words import ALL, bert


def ids(tokenizer: Any, text: str) -> list[int]:
    return [tokenizer.get_vocab()[word] for word in text.split()]


def rows_of(*feeds: dict[str, NDArray[np.int64]]) -> set[tuple[int, ...]]:
    return {tuple(row) for feed in feeds for row in feed["input_ids"].reshape(-1, feed["input_ids"].shape[-1])}


@pytest.mark.parametrize("make", [workload_of_shape, full_rows])
def test_faults_are_named(tokenizer: BertTokenizer, make: Any) -> None:
    with pytest.raises(DataError, match="no records"):
        make(tokenizer, [], ALL, (2, 8), 1)
    with pytest.raises(ConfigError, match="is empty"):
        make(tokenizer, [Record("a")], ALL, (0, 8), 1)


def test_the_workload_is_real_text_of_exactly_the_asked_shape(tokenizer: BertTokenizer) -> None:
    records = read_records(bundled())[0]
    feeds = workload_of_shape(tokenizer, records, ALL, (40, 128), 4)
    assert [feed[name].shape for feed in feeds for name in ALL] == [(40, 128)] * 12
    rows = np.concatenate([feed["input_ids"] for feed in feeds])
    np.testing.assert_array_equal(rows, encode_batch(tokenizer, records[:160], ALL, 128)["input_ids"])


def test_few_texts_come_again_with_their_words_rotated(tokenizer: BertTokenizer) -> None:
    feeds = workload_of_shape(
        tokenizer, [Record("the cat sat on the mat"), Record("the dog ran far away")], ALL, (4, 16), 2
    )
    assert len(rows_of(*feeds)) == 8
    assert feeds[0]["input_ids"][2, 1:7].tolist() == ids(tokenizer, "cat sat on the mat the")


TEXTS = st.lists(
    st.sampled_from(["the", "cat", "the cat", "cat the", "the cat sat on the mat", "猫狗猫", "\t"]), min_size=1
)


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, batch=st.integers(1, 9), sequence=st.integers(3, 12), count=st.integers(1, 4))
def test_neighbouring_workload_rows_always_differ(texts: list[str], batch: int, sequence: int, count: int) -> None:
    tokenizer = bert(["猫", "狗"])
    records = [Record(text) for text in texts]
    feeds = workload_of_shape(tokenizer, records, ALL, (batch, sequence), count)
    assert [feed["input_ids"].shape for feed in feeds] == [(batch, sequence)] * count
    if len(rows_of(encode_batch(tokenizer, records, ALL, sequence))) > 1:
        stream = np.concatenate([feed["input_ids"] for feed in feeds])
        assert all(not np.array_equal(a, b) for a, b in pairwise(stream))


def test_multiple_choice_workloads_have_three_axes(tokenizer: BertTokenizer) -> None:
    records = read_records(bundled(pairs=True), limit=10)[0]
    for feeds in (f(tokenizer, records, ALL, (4, 2, 64), 6) for f in (workload_of_shape, full_rows)):
        assert [feed["token_type_ids"].shape for feed in feeds] == [(4, 2, 64)] * 6
    assert all(feed["attention_mask"].all() for feed in feeds)


# Full rows


@pytest.mark.parametrize("pairs", [False, True])
def test_full_rows_are_text_without_padding(tokenizer: BertTokenizer, pairs: bool) -> None:
    records = read_records(bundled(pairs=pairs), limit=30)[0]
    feeds = full_rows(tokenizer, records, ALL, (20, 128), 3)
    assert [feed[name].shape for feed in feeds for name in ALL] == [(20, 128)] * 9
    assert all(feed["attention_mask"].all() for feed in feeds)
    assert len(rows_of(*feeds)) == 60  # twice as many as there are texts
    own = encode_batch(tokenizer, records[:1], ALL, 128, "longest")["input_ids"][0]
    start = list(own).index(tokenizer.sep_token_id)  # a row begins with its own text
    np.testing.assert_array_equal(feeds[0]["input_ids"][0, :start], own[:start])
    types = feeds[0]["token_type_ids"]
    assert bool(types.any()) == pairs and (not pairs or bool((types == 0).any()))  # both sides of a pair are there


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, batch=st.integers(1, 9), sequence=st.integers(3, 12), count=st.integers(1, 4))
def test_any_texts_with_tokens_fill_any_shape(texts: list[str], batch: int, sequence: int, count: int) -> None:
    feeds = full_rows(bert(["猫", "狗"]), [Record(text) for text in [*texts, "cat"]], ALL, (batch, sequence), count)
    assert [feed["attention_mask"].tolist() for feed in feeds] == [[[1] * sequence] * batch] * count


def test_texts_without_tokens_fill_nothing(tokenizer: BertTokenizer) -> None:
    with pytest.raises(DataError, match="too few tokens to fill a sequence of 8; give other text"):
        full_rows(tokenizer, [Record(" "), Record("")], ALL, (2, 8), 1)
