"""Spans that start and end marks name, as UIE finds them: pairing, exact matching, prompted texts as token rows.

A prompt and a content go in as a pair; every token gets a probability of starting an answer and one of ending it.
Sources: UIE (arXiv 2203.12277); PaddleNLP's SpanEvaluator and `get_span`, whose counts these are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qdq.base.spans import LIMIT as LIMIT
from qdq.base.spans import marked as marked
from qdq.base.spans import paired as paired
from qdq.errors import DataError
from qdq.text.data import Record
from qdq.text.encode import TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Ends of sentences, after which a long text is cut rather than elsewhere
_SENTENCE_END = re.compile(r"[。！？；!?;\n]|\.(?=\s)")
_KEPT = 0.5  # of the room, at least, is used when a text is cut after a sentence

Pair = tuple[int, int]  # (first, last) token of a span, or (first, end) characters


def span_counts(start: Any, end: Any, gold_start: Any, gold_end: Any, limit: float = LIMIT) -> tuple[int, int, int]:
    """(correct, found, gold) spans of one row [S]; gold is 1 at the tokens that start and end an answer."""
    found = set(paired(marked(start, limit), marked(end, limit)))
    gold = set(paired(marked(gold_start), marked(gold_end)))
    return len(found & gold), len(found), len(gold)


class SpanEvaluator:
    """Exact matching of spans, summed over rows: PaddleNLP's metric of this name, with its methods."""

    def __init__(self, limit: float = LIMIT) -> None:
        self.limit = limit
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self.num_correct_spans = self.num_infer_spans = self.num_label_spans = 0

    def compute(self, start_probs: Any, end_probs: Any, gold_start_ids: Any, gold_end_ids: Any) -> tuple[int, int, int]:
        """(correct, found, gold) spans of a batch; all are [B, S] arrays or tensors."""
        found = zip(np.asarray(start_probs), np.asarray(end_probs), strict=True)
        gold = zip(np.asarray(gold_start_ids), np.asarray(gold_end_ids), strict=True)
        rows = [span_counts(*one, *other, self.limit) for one, other in zip(found, gold, strict=True)]
        counts = np.array(rows).reshape(-1, 3).sum(axis=0)
        return int(counts[0]), int(counts[1]), int(counts[2])

    def update(self, num_correct_spans: int, num_infer_spans: int, num_label_spans: int) -> None:
        """Add the counts of a batch."""
        self.num_correct_spans += num_correct_spans
        self.num_infer_spans += num_infer_spans
        self.num_label_spans += num_label_spans

    def accumulate(self) -> tuple[float, float, float]:
        """Precision, recall and F1 of everything so far; 0 where nothing was found, or nothing correct."""
        correct, found, gold = self.num_correct_spans, self.num_infer_spans, self.num_label_spans
        return (
            correct / found if found else 0.0,
            correct / gold if gold else 0.0,
            2 * correct / (found + gold) if correct else 0.0,
        )


@dataclass(frozen=True)
class Part:
    """A prompt and a piece of a content as tokens.

    Attributes:
        tokens: ids by input name, not padded.
        record: number of the record it is of.
        offsets: characters (first, end) of each token in the whole content; in the prompt they are negative, counted
            from one behind its end as the published files do; None for special tokens.
        starts, ends: tokens that start and end an answer.
        lost: answers in this piece that no tokens stand for.
    """

    tokens: TokenRow
    record: int
    offsets: tuple[Pair | None, ...]
    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    lost: int = 0

    def spans(self, start: NDArray[Any], end: NDArray[Any], limit: float = LIMIT) -> list[tuple[int, int, float]]:
        """(first, end, probability) in characters of every span of one row's probabilities [S], in their order.

        The probability is that of the start times that of the end. Spans from the prompt into the content are none.
        """
        found = []
        for first, last in paired(marked(start, limit), marked(end, limit)):
            one, other = self.offsets[first], self.offsets[last]
            if one is not None and other is not None and (one[0] < 0) == (other[0] < 0):
                found.append((one[0], other[1], float(start[first]) * float(end[last])))
        return sorted(found)


def parts(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], sequence: int, typed: bool, words: bool = False
) -> list[Part]:
    """(prompt, content) records as rows of at most `sequence` tokens, in order; long contents become several.

    A content is cut as UIE's data are: at `sequence` - prompt - special tokens *characters*, or before an answer that
    the cut would split. With `words` no answer is known: as many tokens as fit, behind the end of a sentence where one
    is near. Raises DataError for a record without content, a prompt without room, a wrong answer or a slow tokenizer.
    """
    if not tokenizer.is_fast:
        raise DataError("spans need the tokenizer's tokenizer.json (a fast tokenizer); save it with the checkpoint")
    found: list[Part] = []
    for number, record in enumerate(records):
        if record.pair is None:
            raise DataError(f"text {number + 1} has no content; give rows with prompt, content and result_list")
        _check_answers(number, record)
        found += _Cutter(tokenizer, record, number, sequence, typed).pieces(words)
    return found


class _Cutter:
    """Cuts the content of one record."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, record: Record, number: int, sequence: int, typed: bool
    ) -> None:
        self._tokenizer, self._number, self._typed = tokenizer, number, typed
        self._prompt, self._content, self._answers = record.text, str(record.pair), record.spans or ()
        self._sequence = min(sequence, tokenizer.model_max_length)
        self._special = tokenizer.num_special_tokens_to_add(pair=True)

    def pieces(self, words: bool) -> list[Part]:
        prompt = len(self._prompt)
        if words:
            prompt = len(self._tokenizer(self._prompt, add_special_tokens=False, verbose=False)["input_ids"])
        room = self._sequence - prompt - self._special
        if room < 1:
            raise DataError(
                f"prompt {self._prompt[:40]!r} of text {self._number + 1} leaves no room for its content in "
                f"{self._sequence} tokens; give a longer sequence"
            )
        found: list[Part] = []
        first = 0
        while first < len(self._content) or not found:
            end, part = self._longest(first, room, words)
            found.append(part)
            first = max(end, first + 1)
        return found

    def _longest(self, first: int, room: int, words: bool) -> tuple[int, Part]:
        """End of the piece that begins at `first`, and its row; shorter than asked where it has more tokens."""
        end = self._fitting(first, room) if words else self._before_answer(first, first + room)
        while True:
            ids, part = self._row(first, end)
            if ids <= self._sequence or end <= first + 1:
                return end, part
            end = max(end - (ids - self._sequence), first + 1)
            end = end if words else self._before_answer(first, end)

    def _before_answer(self, first: int, cut: int) -> int:
        """`cut`, or the start of the first answer that it would split; of one that starts the piece, `cut` itself."""
        while cut < len(self._content):
            split = [start for start, end, _ in self._answers if first < start < cut < end]
            if not split:
                return cut
            cut = min(split)
        return len(self._content)

    def _fitting(self, first: int, room: int) -> int:
        """End of the longest piece of `room` tokens that begins at `first`, behind a sentence or a word if possible."""
        rest = self._content[first:]
        encoding = self._tokenizer(rest, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets, words = encoding["offset_mapping"], encoding.word_ids()
        if len(offsets) <= room:
            return len(self._content)
        place = room
        while place > 1 and words[place] == words[place - 1]:  # inside a word
            place -= 1
        end = offsets[place if place > 1 else room][0]
        ends = [match.end() for match in _SENTENCE_END.finditer(rest, int(_KEPT * end), end)]
        return first + (ends[-1] if ends else end)

    def _row(self, first: int, end: int) -> tuple[int, Part]:
        """Tokens without any cut, and the row of the piece from `first` to `end`, cut to the sequence."""
        piece = self._content[first:end]
        encoding = self._tokenizer(
            self._prompt, piece, return_offsets_mapping=True, return_token_type_ids=self._typed, verbose=False
        )
        count, ids = len(encoding["input_ids"]), list(encoding["input_ids"])
        if count > self._sequence:  # a single character of many tokens
            encoding = self._tokenizer(
                self._prompt,
                piece,
                truncation="only_second",
                max_length=self._sequence,
                return_offsets_mapping=True,
                return_token_type_ids=self._typed,
                verbose=False,
            )
            ids = list(encoding["input_ids"])
        types = list(encoding["token_type_ids"]) if self._typed else [0] * len(ids)
        # Characters of each token; then the tokens of each answer
        shift = (-len(self._prompt) - 1, first)
        offsets = tuple(
            None if side is None else (span[0] + shift[side], span[1] + shift[side])
            for span, side in zip(encoding["offset_mapping"], encoding.sequence_ids(0), strict=True)
        )
        inside = [(a, b) for a, b, _ in self._answers if a < 0 or (first <= a < end)]
        found = [_tokens_of(offsets, *answer) for answer in inside if answer[1] <= end]
        places = [place for place in found if place is not None]
        row = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": types}
        starts, ends = (tuple(sorted({place[side] for place in places})) for side in (0, 1))
        return count, Part(row, self._number, offsets, starts, ends, len(inside) - len(places))


def _tokens_of(offsets: Sequence[Pair | None], start: int, end: int) -> Pair | None:
    """(first, last) token of the characters from `start` to `end`; None where they have none, such as spaces."""
    inside = [
        place for place, span in enumerate(offsets) if span is not None and max(span[0], start) < min(span[1], end)
    ]
    return (inside[0], inside[-1]) if inside else None


def _check_answers(number: int, record: Record) -> None:
    """Raise DataError for an answer outside its content or prompt, or whose own text is another."""
    content, prompt = str(record.pair), record.text
    for start, end, text in record.spans or ():
        there = content[start:end] if start >= 0 else (prompt + " ")[len(prompt) + 1 + start : len(prompt) + 1 + end]
        low, high = (0, len(content)) if start >= 0 else (-len(prompt) - 1, 0)
        if not (low <= start < end <= high) or (text and there != text):
            raise DataError(
                f"prompt {prompt[:40]!r} of text {number + 1}: the answer {text[:40]!r} from {start} to {end} is not "
                f"there ({there[:40]!r} is); correct its offsets"
            )
