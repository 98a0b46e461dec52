"""Texts are checked one by one: what is wrong with one is said of it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from engines.serving.fault import Fault
from engines.serving.form import TextForm
from engines.serving.tokens import Text, Tokenizer, Tokens, batch
from qdq.tasks.extraction import windows
from qdq.text.data import Record


def encode(file: Path, form: TextForm, *texts: Text) -> list[Any]:
    return list(Tokenizer(file, form).encode(texts))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (Text("", None, "row 3"), "row 3: the text is empty"),
        (Text(" \x00\n", None, "row 3"), "row 3: the text is empty"),
        (Text("", "", "row 3"), "row 3: the text is empty"),
        (Text("cat " * 7, None, "row 3"), r"row 3: 9 tokens, the engine was built for 8; .*truncation"),
        (Text("cat " * 21, None, "row 3", cut=True), "row 3: 84 characters, at most 80"),
        (Text("cat", "dog " * 21, "row 3", cut=True), "row 3: 84 characters, at most 80"),
    ],
)
def test_a_text_that_cannot_be_answered_is_a_fault_of_its_own(
    tokenizer_file: Path, form: Any, text: Text, said: str
) -> None:
    before, found, behind = encode(tokenizer_file, form(), Text("the cat", None, ""), text, Text("a dog", None, ""))
    with pytest.raises(Fault, match=said):
        raise found
    assert [len(before), len(behind)] == [4, 4]


def test_emoji_and_unknown_words_are_texts(tokenizer_file: Path, form: Any) -> None:
    (found,) = encode(tokenizer_file, form(), Text("🙂 zebra", None, ""))
    assert found.encoding.ids == [2, 1, 1, 3]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("text-classification", [2, 5, 6, 3, 6, 6, 6, 3]),  # as transformers does: of both, the longer one first
        ("question-answering", [2, 5, 6, 7, 3, 6, 6, 3]),  # of the context alone
    ],
)
def test_tokens_are_cut_on_request_and_counted(tokenizer_file: Path, form: Any, task: str, expected: list[int]) -> None:
    (found,) = encode(tokenizer_file, form(task=task), Text("the cat sees", "cat " * 9, "", cut=True))
    assert (found.encoding.ids, found.cut) == (expected, 7)
    assert len(found) == 8


def test_windows_are_those_of_evaluate(tokenizer_file: Path, form: Any) -> None:
    """The same tokens, in the same order, as transformers gives `qdq.tasks.extraction`."""
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), pad_token="[PAD]", model_max_length=512)
    question, context = "anna sees", "the cat sees a small dog in new york with anna " * 2
    expected = windows(fast, [Record(question, context)], 12, None, True)
    shape = form(task="question-answering", sequence=12, characters=500)
    (found,) = encode(tokenizer_file, shape, Text(question, context, ""))
    assert [list(one.encoding.ids) for one in (found, *found.more)] == [one.tokens["input_ids"] for one in expected]
    assert len(expected) > 2
    (whole, cut) = encode(tokenizer_file, shape, Text(question, "a cat", ""), Text(question, context, "", cut=True))
    assert whole.more == cut.more == () and cut.cut > 0


def test_a_question_that_leaves_no_room_for_windows_is_refused(tokenizer_file: Path, form: Any) -> None:
    (found,) = encode(tokenizer_file, form(task="question-answering"), Text("the " * 5, "a cat", "row 0"))
    assert isinstance(found, Fault) and "the question has 8 tokens, which leaves no room" in str(found)


def test_a_question_that_leaves_no_room_for_its_context_is_refused_even_when_cut(
    tokenizer_file: Path, form: Any
) -> None:
    (found,) = encode(tokenizer_file, form(task="question-answering"), Text("the " * 9, "a cat", "row 0", cut=True))
    assert isinstance(found, Fault) and "cannot be cut to 8" in str(found)


def test_a_prompt_stands_in_front_of_every_text(tokenizer_file: Path, form: Any) -> None:
    (found,) = encode(tokenizer_file, form(prompt="the "), Text("cat", None, ""))
    assert found.encoding.ids == [2, 5, 6, 3]


@pytest.mark.parametrize(("left", "first"), [(False, [2, 5, 6, 3, 9, 9]), (True, [9, 9, 2, 5, 6, 3])])
def test_a_batch_is_padded_as_the_tokenizer_was_trained(
    tokenizer_file: Path, form: Any, left: bool, first: list[int]
) -> None:
    shape = form(pad={"input_ids": 9, "token_type_ids": 1}, pad_left=left)
    rows: list[Tokens] = encode(tokenizer_file, shape, Text("the cat", None, ""), Text("a", "dog", ""))
    feeds = batch(rows, shape, 6)
    assert feeds["input_ids"][0].tolist() == first
    assert feeds["attention_mask"].sum(axis=1).tolist() == [4, 5]
    assert sorted(feeds["token_type_ids"][1].tolist()) == [0, 0, 0, 1, 1, 1]
    assert all(array.dtype == np.int64 and array.shape == (2, 6) for array in feeds.values())


def test_types_are_zeros_where_the_tokenizer_makes_none(tokenizer_file: Path, form: Any) -> None:
    shape = form(typed=False)
    rows = encode(tokenizer_file, shape, Text("a", "dog", ""))
    assert not batch(rows, shape, 5)["token_type_ids"].any()
