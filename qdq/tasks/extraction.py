"""Extractive question answering: contexts to overlapping windows, start and end logits back to one answer each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qdq.base.spans import ANSWER_TOKENS, best_run
from qdq.errors import ConfigError, DataError
from qdq.tasks.answers import Scoring, score_answer
from qdq.tasks.metrics import Metric, mean_of
from qdq.tasks.problems import Answer, Problem, RowOutputs, identity
from qdq.text.data import Record
from qdq.text.encode import TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Window:
    """Part of a context behind its question: tokens, whose they are, and the characters each context token covers."""

    tokens: TokenRow
    sample: int
    offsets: tuple[tuple[int, int] | None, ...]  # None: not a token of the context


class Span(NamedTuple):
    """The best answer of one window and its score, beside the score of "no answer here"."""

    score: float
    first: int  # character in the context
    last: int
    null: float


def training_row(window: Window, record: Record, inputs: Sequence[str]) -> dict[str, Any]:
    """The window's `inputs` with start and end positions; (0, 0) where it does not hold the first answer."""
    start = end = 0
    if record.answers and record.answers[0][1] >= 0:
        text, first = record.answers[0]
        last = first + len(text)
        inside = [index for index, place in enumerate(window.offsets) if place and place[1] > first and place[0] < last]
        places = [place for place in window.offsets if place]
        if inside and places[0][0] <= first and places[-1][1] >= last:
            start, end = inside[0], inside[-1]
    return {**{name: window.tokens[name] for name in inputs}, "start_positions": start, "end_positions": end}


def windows(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], sequence: int, overlap: int | None, typed: bool
) -> list[Window]:
    """(question, context) pairs as windows of at most `sequence` tokens, in order.

    Neighbouring windows share `overlap` tokens of context (None: a third of `sequence`, which is run_qa's 128 of 384);
    -1 takes the first window alone. Questions longer than half the sequence are cut. Raises ConfigError for an overlap
    that leaves no room to advance, DataError for a record without context or a tokenizer without offsets.
    """
    if not tokenizer.is_fast:
        raise DataError("answers need the tokenizer's tokenizer.json (a fast tokenizer); save it with the checkpoint")
    shared = sequence // 3 if overlap is None else overlap
    special = tokenizer.num_special_tokens_to_add(pair=True)
    found: list[Window] = []
    for sample, record in enumerate(records):
        if record.pair is None:
            raise DataError(f"evaluation text {sample + 1} has no context; give questions with contexts, as SQuAD does")
        question = _cut(tokenizer, record.text.strip(), sequence // 2)
        room = sequence - special - len(tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"])
        if room < 2 or (overlap is not None and overlap >= room):
            raise ConfigError(
                f"--overlap: windows of {sequence} tokens have room for {max(room, 0)} of context beside question "
                f"{sample + 1}; give less than that, or a longer --sequence"
            )
        found += _windows_of(tokenizer, (question, record.pair), sample, (sequence, min(shared, room - 1)), typed)
    return found


def _cut(tokenizer: PreTrainedTokenizerBase, question: str, tokens: int) -> str:
    offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    return question if len(offsets) <= tokens else question[: offsets[tokens - 1][1]]


def _windows_of(
    tokenizer: PreTrainedTokenizerBase, texts: tuple[str, str], sample: int, size: tuple[int, int], typed: bool
) -> list[Window]:
    """Windows of one (question, context); size: (sequence, shared tokens), -1 shared is the first window alone."""
    sequence, shared = size
    encoding = tokenizer(
        *texts,
        truncation="only_second",
        max_length=sequence,
        stride=max(shared, 0),
        return_overflowing_tokens=shared >= 0,
        return_offsets_mapping=True,
        return_token_type_ids=typed,
        verbose=False,
    )
    # One window per row of the encoding, with the characters of each context token
    many = shared >= 0  # without overflow the tokenizer returns one row, not a list of rows
    found = []
    for part in range(len(encoding["input_ids"]) if many else 1):
        ids, offsets = (encoding[key][part] if many else encoding[key] for key in ("input_ids", "offset_mapping"))
        types = (encoding["token_type_ids"][part] if many else encoding["token_type_ids"]) if typed else [0] * len(ids)
        sides = encoding.sequence_ids(part)
        covered = tuple(tuple(span) if side == 1 else None for span, side in zip(offsets, sides, strict=True))
        row = {"input_ids": list(ids), "attention_mask": [1] * len(ids), "token_type_ids": list(types)}
        found.append(Window(row, sample, covered))
    return found


def best_span(window: Window, outputs: RowOutputs, longest: int) -> Span:
    """The (first, last) context tokens, at most `longest` of them, with the largest start + end logit."""
    start, end = outputs["start_logits"], outputs["end_logits"]
    inside = np.array([offset is not None for offset in window.offsets])
    best, *ends = best_run(np.where(inside, start, -np.inf), np.where(inside, end, -np.inf), longest)
    first, last = (window.offsets[place] for place in ends)
    null = float(start[0] + end[0])
    return Span(-np.inf, 0, 0, null) if first is None or last is None else Span(best, first[0], last[1], null)


class Extraction(Problem):
    """One span of the context per question: the best over its windows, or "" where the data allow no answer."""

    decides, token_level = "f1", ("start_logits", "end_logits")

    def __init__(
        self,
        records: Sequence[Record],
        parts: Sequence[Window],
        scoring: Scoring,
        reason: str = "",
        longest: int | None = None,
    ) -> None:
        super().__init__(records, reason)
        self._windows, self._scoring = parts, scoring
        self._longest = longest or ANSWER_TOKENS[scoring]
        self._may_be_empty = any(record.answers == () for record in records)  # SQuAD 2.0

    def keep(self, row: int, outputs: RowOutputs) -> Span:
        """The window's best span."""
        return best_span(self._windows[row], outputs, self._longest)

    def _texts(self, kept: Sequence[Span]) -> list[str]:
        best: dict[int, Span] = {}
        null: dict[int, float] = {}
        for window, span in zip(self._windows, kept, strict=True):
            if window.sample not in best or span.score > best[window.sample].score:
                best[window.sample] = span
            null[window.sample] = min(span.null, null.get(window.sample, np.inf))
        spans = [(record.pair or "", best[sample], null[sample]) for sample, record in enumerate(self._records)]
        return [
            "" if self._may_be_empty and nothing > span.score else context[span.first : span.last]
            for context, span, nothing in spans
        ]

    def metrics(self, kept: Sequence[Span]) -> dict[str, Metric]:
        """exact_match and f1 by the official scorer."""
        pairs = [
            score_answer(text, [answer for answer, _ in record.answers or ()], self._scoring)
            for text, record in zip(self._texts(kept), self._records, strict=True)
        ]
        exact, f1 = np.array(pairs, dtype=np.float64).T
        return {"exact_match": mean_of(exact), "f1": mean_of(f1)}

    def answers(self, kept: Sequence[Span]) -> list[Answer]:
        """The answer's text."""
        return [{**who, "answer": text} for who, text in zip(identity(self._records), self._texts(kept), strict=True)]
