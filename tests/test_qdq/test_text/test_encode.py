"""Feeds from text: shapes, padding, truncation, order and the language warning."""

import logging
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertTokenizer, PreTrainedTokenizerFast

from qdq.errors import ConfigError, DataError
from qdq.text.data import Record, bundled, read_records
from qdq.text.encode import (
    calibration_batches,
    check_language,
    choice_records,
    encode_batch,
)

from .words import ALL, LETTERS, WORDS, bert

CLS, SEP = 2, 3


def without_types() -> PreTrainedTokenizerFast:
    """As DistilBERT's and RoBERTa's: knows no token types; here it also pads on the left with another id."""
    words = {word: index for index, word in enumerate(["<s>", "</s>", "<unk>", "<pad>", *WORDS])}
    core = Tokenizer(WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    core.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def ids(tokenizer: Any, text: str) -> list[int]:
    return [tokenizer.get_vocab()[word] for word in text.split()]


def rows_of(*feeds: dict[str, NDArray[np.int64]]) -> set[tuple[int, ...]]:
    return {tuple(row) for feed in feeds for row in feed["input_ids"].reshape(-1, feed["input_ids"].shape[-1])}


def test_texts_and_pairs_are_encoded_as_the_tokenizer_does(tokenizer: BertTokenizer) -> None:
    feed = encode_batch(tokenizer, [Record("the cat"), Record("the dog", "ran far away")], ALL, 16, "longest")
    first = [CLS, *ids(tokenizer, "the cat"), SEP]
    second = [CLS, *ids(tokenizer, "the dog"), SEP, *ids(tokenizer, "ran far away"), SEP]
    assert feed["input_ids"].tolist() == [first + [0] * 4, second]
    assert feed["attention_mask"].tolist() == [[1] * 4 + [0] * 4, [1] * 8]
    assert feed["token_type_ids"].tolist() == [[0] * 8, [0] * 4 + [1] * 4]
    assert list(feed) == list(ALL)
    assert all(array.dtype == np.int64 for array in feed.values())


def test_it_agrees_with_the_tokenizers_own_padding_and_truncation(tokenizer: BertTokenizer) -> None:
    records = read_records(bundled(pairs=True), limit=20)[0]
    texts, pairs = [r.text for r in records], [r.pair for r in records]
    expected = tokenizer(texts, pairs, truncation=True, max_length=64, padding="max_length", return_tensors="np")
    feed = encode_batch(tokenizer, records, ALL, 64)
    for name in ALL:
        np.testing.assert_array_equal(feed[name], expected[name])


def test_max_length_pads_to_the_sequence_and_only_asked_inputs_are_returned(tokenizer: BertTokenizer) -> None:
    feed = encode_batch(tokenizer, [Record("the cat")], ["input_ids"], 12, "max_length")
    assert list(feed) == ["input_ids"]
    assert feed["input_ids"].shape == (1, 12)


def test_a_tokenizer_without_token_types_gets_zeros_and_its_own_padding() -> None:
    feed = encode_batch(without_types(), [Record("the cat"), Record("the", "dog ran")], ALL, 8, "longest")
    assert feed["input_ids"].tolist() == [[3, 3, 0, 4, 5, 1], [0, 4, 1, 9, 10, 1]]
    assert feed["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1], [1] * 6]
    assert not feed["token_type_ids"].any()


@pytest.mark.parametrize("text", ["the cat " * 12_500, "x" * 100_000])
def test_very_long_text_is_truncated_without_a_word(
    tokenizer: BertTokenizer, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    tokenizer.model_max_length = 32
    with caplog.at_level(logging.WARNING):
        assert encode_batch(tokenizer, [Record(text), Record("a", text)], ALL, 32)["input_ids"].shape == (2, 32)
        check_language(tokenizer, [Record(text)])
    assert not caplog.records


@pytest.mark.parametrize(("record", "least"), [(Record("the cat"), 3), (Record("the cat", "the dog"), 5)])
def test_a_sequence_without_room_for_text_is_refused(tokenizer: BertTokenizer, record: Record, least: int) -> None:
    assert encode_batch(tokenizer, [record], ALL, least)["input_ids"].shape == (1, least)
    with pytest.raises(ConfigError, match=f"give --sequence {least} or more"):
        encode_batch(tokenizer, [record], ALL, least - 1)


def test_faults_are_named(tokenizer: BertTokenizer) -> None:
    with pytest.raises(ConfigError, match="model input 'input_id' cannot be made from text; did you mean 'input_ids'"):
        encode_batch(tokenizer, [Record("a")], ["input_id"], 8)
    with pytest.raises(DataError, match="no records"):
        encode_batch(tokenizer, [], ALL, 8)
    with pytest.raises(ConfigError, match="cannot hold 0 records"):
        next(calibration_batches(tokenizer, [Record("a")], ALL, 8, micro_batch=0))
    unpadded = without_types()
    unpadded.pad_token = None
    with pytest.raises(DataError, match="no padding token"):
        encode_batch(unpadded, [Record("the")], ALL, 8)


# Calibration


def test_calibration_batches_hold_every_record_once_sorted_by_length(tokenizer: BertTokenizer) -> None:
    records = read_records(bundled(), limit=50)[0]
    batches = list(calibration_batches(tokenizer, records, ALL, 128))
    assert [len(batch["input_ids"]) for batch in batches] == [8] * 6 + [2]
    lengths = [int(n) for batch in batches for n in batch["attention_mask"].sum(axis=1)]
    assert lengths == sorted(lengths)
    assert all(batch["attention_mask"].sum(axis=1).max() == batch["input_ids"].shape[1] for batch in batches)
    alone = {tuple(encode_batch(tokenizer, [record], ALL, 128, "longest")["input_ids"][0]) for record in records}
    assert {tuple(row[row != 0]) for batch in batches for row in batch["input_ids"]} == alone


def test_calibration_batches_repeat_exactly_and_keep_the_order_of_equal_lengths(tokenizer: BertTokenizer) -> None:
    records = [Record(word) for word in WORDS]
    batches = list(calibration_batches(tokenizer, records, ["input_ids"], 16, micro_batch=4))
    assert [int(i) for batch in batches for i in batch["input_ids"][:, 1]] == ids(tokenizer, " ".join(WORDS))
    again = list(calibration_batches(tokenizer, records, ["input_ids"], 16, micro_batch=4))
    assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, again, strict=True))


# Multiple choice


def test_choices_pair_a_text_with_its_own_and_the_following_endings() -> None:
    records = [Record("a", "1"), Record("b", "2"), Record("c", "3")]
    assert choice_records(records, 2) == [
        [Record("a", "1"), Record("a", "2")],
        [Record("b", "2"), Record("b", "3")],
        [Record("c", "3"), Record("c", "1")],
    ]
    assert choice_records([Record("a"), Record("b"), Record("c")], 2)[0] == [Record("a", "b"), Record("a", "c")]


def test_multiple_choice_feeds_have_three_axes(tokenizer: BertTokenizer) -> None:
    records = read_records(bundled(pairs=True), limit=10)[0]
    feed = encode_batch(tokenizer, records, ALL, 64, choices=3)
    assert all(array.shape == (10, 3, 64) for array in feed.values())
    for sample, rows in zip(choice_records(records, 3), feed["input_ids"], strict=True):
        np.testing.assert_array_equal(rows, encode_batch(tokenizer, sample, ALL, 64)["input_ids"])
    shapes = [b["input_ids"].shape[:2] for b in calibration_batches(tokenizer, records, ALL, 64, choices=2)]
    assert shapes == [(8, 2), (2, 2)]


# Language


def test_an_english_vocabulary_gives_no_warning() -> None:
    records = read_records(bundled(), limit=30)[0]
    words = {word for record in records for word in re.findall(r"\w+", record.text.lower())}
    assert check_language(bert([*sorted(words), *LETTERS]), records) is None


def test_a_tokenizer_that_does_not_know_the_words_gives_a_warning() -> None:
    warning = check_language(bert([]), read_records(bundled(), limit=30)[0])
    assert warning is not None
    assert "unknown to it" in warning
    assert "--calibration FILE" in warning


def test_a_tokenizer_that_spells_every_word_gives_a_warning(tokenizer: BertTokenizer) -> None:
    warning = check_language(tokenizer, read_records(bundled(), limit=30)[0])
    assert warning is not None
    assert "tokens per English word" in warning


def test_a_chinese_vocabulary_gives_a_warning_though_it_can_spell_english() -> None:
    records = [Record("the cat sat on the mat")]
    warning = check_language(bert([chr(code) for code in range(0x4E00, 0x4E40)]), records)
    assert warning is not None
    assert "Chinese or Japanese" in warning
    assert check_language(bert(["猫"]), records) is None
