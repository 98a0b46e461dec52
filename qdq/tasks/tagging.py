"""Token classification: words to their first sub-tokens, and those tokens' classes back to tags and entities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from qdq.base.tags import OUTSIDE, entities, has_entities
from qdq.tasks.metrics import Metric, micro_f1, ratio_of
from qdq.tasks.problems import Answer, Problem, RowOutputs, identity
from qdq.text.data import Record
from qdq.text.encode import TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TaggedRow:
    """One sentence as tokens. `words` are its words, `first` the first sub-token of each that was not truncated."""

    tokens: TokenRow
    words: tuple[str, ...]
    first: tuple[int, ...]


def tagged_rows(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], sequence: int, typed: bool
) -> list[TaggedRow]:
    """Sentences truncated to `sequence` tokens, not padded. A record without words is split as the tokenizer does.

    A tokenizer without a fast form gets the words one by one; it splits a record without words at spaces.
    """
    if not tokenizer.is_fast:
        return [_row_by_word(tokenizer, record, sequence) for record in records]
    spaced = "ByteLevel" in type(tokenizer.backend_tokenizer.pre_tokenizer).__name__
    return [_tagged_row(tokenizer, record, sequence, typed, spaced) for record in records]


def _tagged_row(
    tokenizer: PreTrainedTokenizerBase, record: Record, sequence: int, typed: bool, spaced: bool
) -> TaggedRow:
    words = list(record.words)
    if spaced:  # byte-level BPE knows a word inside a sentence by the space before it
        words = [*words[:1], *(f" {word}" for word in words[1:])]
    encoding = tokenizer(
        words or record.text,
        is_split_into_words=bool(words),
        truncation=True,
        max_length=sequence,
        return_token_type_ids=typed,
        verbose=False,
    )
    ids = list(encoding["input_ids"])
    first: dict[int, int] = {}
    for position, word in enumerate(encoding.word_ids()):
        if word is not None:
            first.setdefault(word, position)
    texts = record.words or tuple(record.text[slice(*encoding.word_to_chars(word))] for word in sorted(first))
    # A word of characters the tokenizer drops (a lone variation selector) has no token at all.
    places = tuple(first.get(word, -1) for word in range(len(texts)))
    types = list(encoding["token_type_ids"]) if typed else [0] * len(ids)
    return TaggedRow({"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": types}, texts, places)


def _row_by_word(tokenizer: PreTrainedTokenizerBase, record: Record, sequence: int) -> TaggedRow:
    words = record.words or tuple(record.text.split())
    room = sequence - tokenizer.num_special_tokens_to_add()
    ids: list[int] = []
    places = []
    for word in words:
        pieces = [cast(int, tokenizer.convert_tokens_to_ids(piece)) for piece in tokenizer.tokenize(word)]
        places.append(len(ids) if pieces and len(ids) < room else -1)
        ids.extend(pieces)
    # The special tokens around them, and how many of those stand in front
    whole = tokenizer.build_inputs_with_special_tokens(ids[:room])
    front = len(tokenizer.build_inputs_with_special_tokens([])) - 1 if not ids else whole.index(ids[0])
    first = tuple(place + front if place >= 0 else -1 for place in places)
    tokens = {"input_ids": whole, "attention_mask": [1] * len(whole), "token_type_ids": [0] * len(whole)}
    return TaggedRow(tokens, words, first)


def unseen(rows: Sequence[TaggedRow]) -> str:
    """A sentence that counts the words without prediction because they were truncated; "" when there are none."""
    missing = sum(place < 0 for row in rows for place in row.first)
    cut = sum(any(place < 0 for place in row.first) for row in rows)
    total = sum(len(row.words) for row in rows)
    return (
        f"{missing} of {total} words in {cut} of {len(rows)} texts are cut off and count as {OUTSIDE}"
        if missing
        else ""
    )


class Tagging(Problem):
    """One tag per word, from its first sub-token; entities are scored by conlleval's rule, other tags one by one.

    `gold` are tags as the model writes them (`schemes.gold_tags`).
    """

    token_level = ("logits",)

    def __init__(
        self,
        records: Sequence[Record],
        rows: Sequence[TaggedRow],
        names: Sequence[str],
        gold: Sequence[Sequence[str]] | None,
        reason: str = "",
    ) -> None:
        self.decides = "f1" if has_entities(names) else "token_accuracy"
        super().__init__(records, reason)
        self._rows, self._names, self._gold = rows, names, gold or ()

    def keep(self, row: int, outputs: RowOutputs) -> NDArray[np.int64]:
        """The class of every word; -1 where it has no token."""
        classes = outputs["logits"].argmax(axis=-1)
        first = np.array(self._rows[row].first, dtype=np.int64)
        return np.where(first >= 0, classes[np.maximum(first, 0)], -1)

    def _tags(self, kept: Sequence[NDArray[np.int64]]) -> list[list[str]]:
        return [[self._names[tag] if tag >= 0 else OUTSIDE for tag in classes.tolist()] for classes in kept]

    def metrics(self, kept: Sequence[NDArray[np.int64]]) -> dict[str, Metric]:
        """See `tag_scores`."""
        return tag_scores(self._tags(kept), self._gold, self._names)

    def answers(self, kept: Sequence[NDArray[np.int64]]) -> list[Answer]:
        """Words and their tags."""
        tagged = zip(identity(self._records), self._rows, self._tags(kept), strict=True)
        return [{**who, "words": list(row.words), "tags": tags} for who, row, tags in tagged]


def tag_scores(
    predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]], names: Sequence[str]
) -> dict[str, Metric]:
    """f1 (micro, over entities: type, first and last word must be right) with precision, recall and token accuracy.

    Args are tags per sentence, one per word, in any scheme `schemes.entities` reads. f1 equals
    ``seqeval.metrics.f1_score(gold, predicted)``, conlleval's rule. Where the classes `names` are no tags of entities
    (parts of speech, numbers without names), token accuracy alone.
    """
    rows = []
    for guess, truth in zip(predicted, gold, strict=True):
        found, expected = set(entities(guess)), set(entities(truth))
        same = sum(one == other for one, other in zip(guess, truth, strict=True))
        rows.append((len(found & expected), len(found), len(expected), same, len(truth)))
    counts: NDArray[np.float64] = np.array(rows, dtype=np.float64).reshape(-1, 5)
    correct, found_count, gold_count, same_tags, words = counts.T
    accuracy = {"token_accuracy": ratio_of(same_tags, words)}
    if not has_entities(names):
        return accuracy
    return {
        "f1": micro_f1(correct, found_count, gold_count),
        "precision": ratio_of(correct, found_count),
        "recall": ratio_of(correct, gold_count),
        **accuracy,
    }
