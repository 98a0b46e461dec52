"""Spans from start and end marks, exact matching, and contents cut into rows."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from qdq.errors import DataError
from qdq.tasks.spans import SpanEvaluator, paired, parts
from qdq.text.data import Record


def tokenizer(text: str = "", most: int = 512) -> PreTrainedTokenizerFast:
    """Every character of `text` a token; ASCII words are one each."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(set(text))]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made, model_max_length=most, pad_token="[PAD]", unk_token="[UNK]"
    )


@pytest.mark.parametrize(
    ("starts", "ends", "expected"),
    [
        ([1], [3], [(1, 3)]),
        ([2], [2], [(2, 2)]),  # one token
        ([1, 2], [4], [(2, 4)]),  # a later start takes the place
        ([1], [3, 5], [(1, 3)]),  # each start once
        ([4], [2], []),  # an end before every start
        ([1, 4], [2, 6], [(1, 2), (4, 6)]),
        ([1, 3], [3], [(3, 3)]),
        ([3, 1], [6, 2], [(1, 2), (3, 6)]),  # in any order
        ([], [1], []),
    ],
)
def test_starts_and_ends_become_spans(starts: list[int], ends: list[int], expected: list[tuple[int, int]]) -> None:
    assert paired(starts, ends) == expected


def test_evaluator_by_hand() -> None:
    gold_start = np.zeros((2, 6), dtype=np.int64)
    gold_end = np.zeros((2, 6), dtype=np.int64)
    gold_start[0, [1, 4]], gold_end[0, [2, 4]] = 1, 1  # (1, 2) and (4, 4); the second text has none
    start, end = np.zeros((2, 6)), np.zeros((2, 6))
    start[0, 1], end[0, 2] = 0.9, 0.51  # right
    start[0, 4], end[0, 5] = 0.9, 0.9  # ends too late
    start[1, 3], end[1, 3] = 0.5, 0.9  # 0.5 is not above 0.5
    start[1, 1], end[1, 1] = 0.6, 0.6  # nothing is there
    metric = SpanEvaluator()
    assert metric.accumulate() == (0.0, 0.0, 0.0)
    counts = metric.compute(start, end, gold_start, gold_end)
    assert counts == (1, 3, 2)
    metric.update(*counts)
    assert metric.accumulate() == (1 / 3, 1 / 2, 0.4)
    metric.update(1, 1, 2)
    assert metric.accumulate() == (2 / 4, 2 / 4, 0.5)
    metric.reset()
    assert metric.accumulate() == (0.0, 0.0, 0.0)


def test_a_row_knows_its_characters() -> None:
    record = Record("城市[大,小]", "去北京吧", spans=((1, 3, "北京"), (-5, -4, "大")))
    (row,) = parts(tokenizer("城市大小去北京吧[],"), [record], 64, typed=False)
    prompt = len(record.text)
    # [CLS] and the prompt's seven tokens, [SEP], four of the content
    assert row.starts == (4, prompt + 3) and row.ends == (4, prompt + 4)
    assert row.offsets[1] == (-prompt - 1, -prompt) and row.offsets[prompt + 2] == (0, 1)
    start, end = np.zeros(len(row.offsets)), np.zeros(len(row.offsets))
    start[list(row.starts)], end[list(row.ends)] = 0.8, 0.5001
    found = row.spans(start, end)
    assert [span[:2] for span in found] == [(-5, -4), (1, 3)] and found[0][2] == pytest.approx(0.8 * 0.5001)


def test_a_span_from_the_prompt_into_the_content_is_none() -> None:
    (row,) = parts(tokenizer("城市北京"), [Record("城市", "北京")], 64, typed=False)
    start, end = np.zeros(7), np.zeros(7)
    start[1] = end[4] = 0.9
    assert row.spans(start, end) == []


def test_a_long_content_is_cut_before_an_answer() -> None:
    content = "甲乙丙丁戊己庚辛壬癸子丑"
    record = Record("问题", content, spans=((3, 6, "丁戊己"), (9, 10, "癸"), (-3, -2, "问")))
    # Room for 10 - 2 - 3 = 5 characters: the cut moves from 5 to 3, then 8 and 12
    found = parts(tokenizer(content + "问题"), [record], 10, typed=False)
    pieces = [tuple(offset for offset in row.offsets if offset and offset[0] >= 0) for row in found]
    assert [(piece[0][0], piece[-1][1]) for piece in pieces] == [(0, 3), (3, 8), (8, 12)]
    assert [row.starts for row in found] == [(1,), (1, 4), (1, 5)]  # the prompt's answer is in every part
    assert [row.ends for row in found] == [(1,), (1, 6), (1, 5)]
    assert sum(row.lost for row in found) == 0


def test_an_answer_longer_than_a_part_is_counted_as_lost() -> None:
    content = "甲乙丙丁戊己庚辛"
    found = parts(tokenizer(content), [Record("问", content, spans=((0, 7, content[:7]),))], 9, typed=False)
    assert sum(row.lost for row in found) == 1 and all(not row.starts for row in found)


def test_without_answers_as_many_tokens_as_fit_behind_a_sentence() -> None:
    text = "one two three four. five six seven eight nine ten"
    found = parts(tokenizer(), [Record("q", text)], 11, typed=False, words=True)
    pieces = [[text[a:b] for a, b in (o for o in row.offsets if o and o[0] >= 0)] for row in found]
    assert pieces[0] == ["one", "two", "three", "four", "."] and sum(map(len, pieces)) == 11
    assert all(len(row.tokens["input_ids"]) <= 11 for row in found)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (Record("问", "甲乙", spans=((1, 3, "乙"),)), "is not there"),
        (Record("问", "甲乙", spans=((0, 1, "乙"),)), "is not there"),
        (Record("问", "甲乙", spans=((-9, -8, ""),)), "is not there"),
        (Record("问"), "has no content"),
        (Record("很" * 30, "甲乙"), "leaves no room"),
    ],
)
def test_rows_that_cannot_be_meant(record: Record, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parts(tokenizer(), [record], 16, typed=False)
