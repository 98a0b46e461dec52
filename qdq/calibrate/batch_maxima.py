"""BatchMaxima: the largest magnitudes of batches, for the two algorithms that are defined by batches."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


class BatchMaxima:
    """Running statistics over batches: each batch is added once the largest magnitude of all its samples is known.

    average: PaddlePaddle's `avg` (PostTrainingQuantization): per batch the mean over its samples of their largest
    magnitude, then the mean over batches. Exact: sums are fractions, so the order does not matter.

    moving average: PaddlePaddle's moving_average_abs_max: over the batches in order, ``accum = rate * accum + max``,
    ``state = rate * state + 1``, amax = accum / state. Frozen for a static graph after the last batch.

    `batch_size` samples are one batch; samples are numbered in the order the user gave them and may arrive in any
    other, as calibration sorts them by length: set `rows` to the numbers of the samples of the forward that follows.
    While `rows` is None every `add` is a batch of its own.
    """

    def __init__(self, rate: float, batch_size: int | None = None) -> None:
        self.rate = rate
        self.batch_size = batch_size
        self.rows: Sequence[int] | None = None
        self._open: dict[int, dict[int, float]] = {}  # batch -> sample -> largest, while samples are still to come
        self._count, self._sum = 0, Fraction(0)
        self._accum, self._state = 0.0, 0.0

    def add(self, maxima: Sequence[float]) -> None:
        """Add the largest magnitude of every sample of one forward; a point that is passed twice keeps the larger."""
        if self.rows is None or self.batch_size is None:
            self._fold(maxima)
            return
        for row, value in zip(self.rows, maxima, strict=True):
            batch = self._open.setdefault(row // self.batch_size, {})
            batch[row] = max(value, batch.get(row, 0.0))

    def close(self, before: int | None = None) -> None:
        """Add every batch whose samples all have numbers below `before` (None: every batch) to the statistics."""
        size = self.batch_size or 1
        for number in sorted(self._open):
            if before is None or (number + 1) * size <= before:
                self._fold(list(self._open.pop(number).values()))

    def _fold(self, maxima: Sequence[float]) -> None:
        self._count += 1
        self._sum += sum(map(Fraction, maxima), Fraction(0)) / len(maxima)
        self._accum = self.rate * self._accum + max(maxima)
        self._state = self.rate * self._state + 1

    def merge(self, other: BatchMaxima) -> None:
        """Append the batches of `other`; batches that are still open in either are closed first."""
        self.close()
        other.close()
        self._count += other._count
        self._sum += other._sum
        decay = self.rate**other._count
        self._accum = self._accum * decay + other._accum
        self._state = self._state * decay + other._state

    def average(self) -> float:
        """Mean over batches of the mean over samples of the largest magnitude; 0 without data."""
        self.close()
        return float(self._sum / self._count) if self._count else 0.0

    def moving_average(self) -> float:
        """Moving average over batches of the largest magnitude; 0 without data."""
        self.close()
        return self._accum / self._state if self._state else 0.0
