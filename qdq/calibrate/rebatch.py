"""MicroBatches: the same forwards for the same samples, independent of the batch size they come in.

The sums inside a matrix multiplication depend in their last bit on the shape of its operands, and a last bit can move
an element to the neighbouring FP16 magnitude. So samples are taken out of the batches they come in, and windows of 256
of them are sorted by length and run eight at a time: tables are then identical bit for bit for every batch size, and
most padding is gone. Memory is bounded by the window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qdq.errors import DataError

WINDOW = 256  # samples; sorting more of them saves no padding worth having
MICRO_BATCH = 8  # rows computed at once; changes the time only, and 8 is fastest on two cores

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class MicroBatches:
    """Forwards to run, each with the numbers of its samples (None: the batch is as the user gave it).

    `batch_size`: samples of a batch, for the per-batch algorithms.
    """

    forwards: Sequence[tuple[Batch, Sequence[int] | None]]
    batch_size: int | None = None

    @classmethod
    def as_given(cls, batches: Sequence[Batch]) -> MicroBatches:
        """Every element is one forward and one batch."""
        return cls([(batch, None) for batch in batches])

    @classmethod
    def of(cls, batches: Sequence[Batch], batch_size: int) -> MicroBatches:
        """Samples of `batches` (int64 [B, S] or [B, N, S] by input name, with "attention_mask") in micro-batches.

        Raises DataError when there are no samples, or batches differ in their inputs.
        """
        samples = [_sample(batch, row) for batch in batches for row in range(len(batch["attention_mask"]))]
        if not samples:
            raise DataError("there are no samples to calibrate with; give at least one text")
        if any(sample.keys() != samples[0].keys() for sample in samples):
            raise DataError("calibration batches hold different inputs; give all of them the same ones")
        forwards: list[tuple[Batch, Sequence[int] | None]] = []
        for start in range(0, len(samples), WINDOW):
            numbers = range(start, min(start + WINDOW, len(samples)))
            by_length = sorted(numbers, key=lambda number: samples[number]["attention_mask"].shape[-1])
            for first in range(0, len(by_length), MICRO_BATCH):
                rows = by_length[first : first + MICRO_BATCH]
                forwards.append((_padded([samples[row] for row in rows]), rows))
        return cls(forwards, batch_size)

    @property
    def feeds(self) -> list[Batch]:
        """The forwards alone."""
        return [batch for batch, _ in self.forwards]

    def __iter__(self) -> Iterator[tuple[Batch, Sequence[int] | None]]:
        return iter(self.forwards)

    def __len__(self) -> int:
        return len(self.forwards)


def _sample(batch: Batch, row: int) -> dict[str, Tensor]:
    """One sample without the padding that all of its sequences share on the right."""
    used = batch["attention_mask"][row].reshape(-1, batch["attention_mask"].shape[-1]).bool().any(0)
    length = int(used.nonzero().max()) + 1 if bool(used.any()) else 1
    return {name: tensor[row][..., :length] for name, tensor in batch.items() if tensor.dim() > 1}


def _padded(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Samples stacked, shorter ones padded on the right with zeros, which the attention mask hides."""
    length = max(sample["attention_mask"].shape[-1] for sample in samples)
    return {
        name: torch.stack([torch.nn.functional.pad(s[name], (0, length - s[name].shape[-1])) for s in samples])
        for name in samples[0]
    }
