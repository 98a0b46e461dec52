"""Prompt files as rows a Trainer takes: token ids, and marks of starts and ends.

An example, with the two names of `LABELS` as the Trainer's label_names::

    rows = prompt_rows("data/train.txt", tokenizer, loaded.inputs, 512)
    Trainer(…, train_dataset=rows, data_collator=MarksCollator(tokenizer))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import DataError
from qdq.tasks.spans import Part, parts
from qdq.text.data import Record, TextSource, read_records
from qdq.text.encode import has_types

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

LABELS = ("start_positions", "end_positions")


def prompt_records(path: str | Path, limit: int | None = None) -> list[Record]:
    """The rows of a prompt file: prompt, content and answers. Raises DataError for a file without answers."""
    records, _ = read_records(TextSource(str(path), text_columns=("prompt", "content")), limit)
    bare = sum(record.spans is None for record in records)
    if bare:
        raise DataError(f"{path}: {bare} of {len(records)} rows have no result_list; make the file with doccano.py")
    return records


def prompt_rows(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Sequence[str],
    sequence: int,
    limit: int | None = None,
) -> list[dict[str, list[Any]]]:
    """The rows of a prompt file with the model's `inputs` and the marks of `LABELS`, not padded.

    Contents longer than `sequence` - prompt - special tokens characters become several rows.
    """
    records = prompt_records(path, limit)
    found = parts(tokenizer, records, sequence, has_types(tokenizer, inputs))
    return [_row(part, inputs) for part in found]


def _row(part: Part, inputs: Sequence[str]) -> dict[str, list[Any]]:
    count = len(part.tokens["input_ids"])
    sides = zip(LABELS, (part.starts, part.ends), strict=True)
    marks = {name: [float(place in side) for place in range(count)] for name, side in sides}
    return {**{name: part.tokens[name] for name in inputs}, **marks}


class MarksCollator:
    """Pads rows of `prompt_rows` to the longest of a batch; padding is marked as nothing."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Tensors [B, S] by name: int64 inputs, float32 marks."""
        import torch

        inputs = [{name: value for name, value in row.items() if name not in LABELS} for row in rows]
        batch = dict(self._tokenizer.pad(inputs, return_tensors="pt"))
        width = batch["input_ids"].shape[1]
        for name in LABELS:
            if name in rows[0]:
                padded = [[*row[name], *[0.0] * (width - len(row[name]))] for row in rows]
                batch[name] = torch.tensor(padded, dtype=torch.float32)
        return batch
