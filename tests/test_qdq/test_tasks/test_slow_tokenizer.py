"""Tagged words through a tokenizer without a fast form: word by word, as it tokenizes each."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from qdq.tasks.tagging import tagged_rows
from qdq.text.data import Record

WORDS = ("tôi", "đi", "học", "ở", "hà_nội")


def test_words_of_a_phobert_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("".join(f"{word} 1\n" for word in (*WORDS, "a@@", "b")), encoding="utf-8")
    (tmp_path / "bpe.codes").write_text("h ọ 1\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PhobertTokenizer"}')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert not tokenizer.is_fast
    text = Record("tôi đi học")
    tagged = Record("", words=("tôi", "đi", "xyzzy", "học"), tags=("O", "O", "O", "O"))
    whole, by_word = tagged_rows(tokenizer, [text, tagged], 32, typed=False)
    assert whole.words == ("tôi", "đi", "học")
    assert list(whole.tokens["input_ids"]) == tokenizer("tôi đi học")["input_ids"]
    assert whole.first[0] == 1  # behind the token that begins a text
    ids = by_word.tokens["input_ids"]
    assert ids == tokenizer("tôi đi xyzzy học")["input_ids"]
    assert [ids[place] for place in by_word.first] == [
        tokenizer.convert_tokens_to_ids(tokenizer.tokenize(w)[0]) for w in tagged.words
    ]
    (cut,) = tagged_rows(tokenizer, [tagged], 4, typed=False)
    assert len(cut.tokens["input_ids"]) == 4
    assert cut.first[-1] == -1  # no prediction for a word that was cut


@pytest.mark.parametrize("words", [(), ("",)])
def test_a_sentence_without_words(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a 1\n", encoding="utf-8")
    (tmp_path / "bpe.codes").write_text("h ọ 1\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PhobertTokenizer"}')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    (row,) = tagged_rows(tokenizer, [Record("", words=words)], 8, typed=False)
    assert row.tokens["input_ids"] == tokenizer("")["input_ids"]
    assert all(place == -1 for place in row.first)
