"""Batches for benchmarks, of an exact shape: texts of their own lengths, or full rows in which every token is real."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from qdq.errors import ConfigError, DataError
from qdq.text.data import Record
from qdq.text.encode import Feed, TokenRow, pad, samples_of, shaped, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Shape: TypeAlias = tuple[int, int] | tuple[int, int, int]  # (batch, sequence), or (batch, choices, sequence)


def workload_of_shape(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    inputs: Sequence[str],
    shape: Shape,
    count: int,
) -> list[Feed]:
    """`count` feeds of exactly `shape`: (batch, sequence), or (batch, choices, sequence) for multiple choice.

    Token ids and lengths are those of the texts, truncated and padded to `sequence`. Texts follow one another through
    the batches; when they run out they come again with their words rotated, as often as that gives new token ids.
    Neighbouring rows are never equal when any two records differ in tokens. Raises as `encode_batch`.
    """
    batch, sequence, choices = shape[0], shape[-1], shape[1] if len(shape) == 3 else None
    _check(records, shape, count)
    distinct = _distinct_samples(tokenizer, samples_of(records, choices), inputs, sequence, batch * count)
    samples = itertools.cycle(distinct)
    feeds = []
    for _ in range(count):
        rows = list(itertools.chain.from_iterable(itertools.islice(samples, batch)))
        feeds.append(shaped(pad(tokenizer, rows, inputs, sequence), batch, choices))
    return feeds


def full_rows(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], inputs: Sequence[str], shape: Shape, count: int
) -> list[Feed]:
    """`count` feeds of exactly `shape`, as `workload_of_shape`, in which every token is real.

    Every row joins the texts from its own on (of pairs both sides) until they fill the sequence; when the rows run out
    of first texts, these come again with their words rotated. Raises as `encode_batch`, and DataError for texts that
    hold no tokens.
    """
    _check(records, shape, count)
    batch, sequence, choices = shape[0], shape[-1], shape[1] if len(shape) == 3 else None
    texts = list(itertools.chain.from_iterable(samples_of(records, choices)))
    size = batch * (choices or 1)
    rows = _different_rows(tokenizer, texts, inputs, sequence, size * count)
    return [
        shaped(pad(tokenizer, rows[start : start + size], inputs, sequence), batch, choices)
        for start in range(0, len(rows), size)
    ]


def _different_rows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Record], inputs: Sequence[str], sequence: int, needed: int
) -> list[TokenRow]:
    """Full rows, no two with the same tokens as long as a round through the texts still gives a new one."""
    rows: list[TokenRow] = []
    seen: set[tuple[int, ...]] = set()
    number = repeats = 0
    while len(rows) < needed:
        row = _filled(tokenizer, texts, number, inputs, sequence)
        number += 1
        if tuple(row["input_ids"]) in seen and repeats < len(texts):
            repeats += 1
            continue
        repeats = 0 if tuple(row["input_ids"]) not in seen else repeats
        seen.add(tuple(row["input_ids"]))
        rows.append(row)
    return rows


def _filled(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Record], number: int, inputs: Sequence[str], sequence: int
) -> TokenRow:
    """Row `number` of full rows: `sequence` tokens."""
    joined, before = 1, 0
    while True:
        turns = (divmod(number + step, len(texts)) for step in range(joined))
        parts = [_rotated(texts[index], rotation) for rotation, index in turns]
        paired = parts[0].pair is not None
        text = " ".join(part.text for part in parts)
        pair = " ".join(part.pair or part.text for part in parts) if paired else None
        row = tokenize(tokenizer, Record(text, pair), inputs, sequence)
        length = len(row["input_ids"])
        if length == sequence:
            return row
        if joined >= 2 * len(texts) and length == before:  # every text came once more
            raise DataError(
                f"the texts hold too few tokens to fill a sequence of {sequence}; give other text to --eval-data "
                "(EVAL=)"
            )
        before, joined = length, 2 * joined


def _check(records: Sequence[Record], shape: Shape, count: int) -> None:
    if min(*shape, count) < 1:
        raise ConfigError(f"a workload of {count} batches of {shape} is empty; give sizes of at least one")
    if not records:
        raise DataError("there are no records to benchmark with; read at least one text")


def _distinct_samples(
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Sequence[Record]],
    inputs: Sequence[str],
    sequence: int,
    needed: int,
) -> list[list[TokenRow]]:
    """Up to `needed` samples that differ in their tokens: the records as they are, then with their words rotated."""
    found: dict[tuple[tuple[int, ...], ...], list[TokenRow]] = {}
    rotation, before = 0, -1
    while len(found) > before:
        before = len(found)
        for group in groups:
            rows = [tokenize(tokenizer, _rotated(record, rotation), inputs, sequence) for record in group]
            found.setdefault(tuple(tuple(row["input_ids"]) for row in rows), rows)
            if len(found) == needed:
                return list(found.values())
        rotation += 1
    return list(found.values())


def _rotated(record: Record, by: int) -> Record:
    return Record(_rotate(record.text, by), None if record.pair is None else _rotate(record.pair, by))


def _rotate(text: str, by: int) -> str:
    """`text` with its first `by` words moved to the end; by characters where a script writes no spaces."""
    if by == 0 or not text.strip():
        return text
    separator, units = (" ", text.split()) if " " in text.strip() or text.isascii() else ("", list(text))
    shift = by % len(units)
    return separator.join(units[shift:] + units[:shift])
