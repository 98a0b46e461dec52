"""Calibrators: from observed activations to an amax, in one pass, mergeable, independent of batching.

Each collects through `update`, combines through `merge` and answers through `amax`. Collected state is a maximum,
integer counts or exact fractions, so neither the order nor the grouping of the data changes the result by a single
bit; the two algorithms that are defined by batches (`qdq.calibrate.batch_maxima`) depend on the batch size
alone.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from qdq.calibrate.algorithms import DEFAULT_MOVING_RATE, DEFAULT_PERCENTILE, PER_BATCH, Algorithm
from qdq.calibrate.batch_maxima import BatchMaxima
from qdq.calibrate.thresholds import FINITE_FP16_MAGNITUDES, Counts, choose_thresholds
from qdq.errors import CalibrationError
from qdq.inject.scale import LARGEST_FP16
from qdq.inject.statistics import MaxCalibrator, problem_of, row_maxima

MAGNITUDE_BITS = 0x7FFF  # of an FP16 number, all but its sign
WORTH_A_THREAD = 2**17  # elements to count


@dataclass(frozen=True)
class Seen:
    """Statistics of one tensor: counts per FP16 magnitude (None when not finite), its maximum and that of every row."""

    counts: Tensor | None
    largest: float
    rows: list[float]


class TensorMemo:
    """Counts each tensor once however many points see it in one forward: q, k, v and a residual share their input.

    A tensor is known by identity, version and mask; one that was freed is forgotten with it.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], tuple[weakref.ref[Tensor], Seen]] = {}

    def seen(self, x: Tensor, mask: Tensor | None) -> Seen:
        """Return the statistics of `x`, computed at most once."""
        place = () if mask is None else (mask.data_ptr(), *mask.shape, *mask.stride())
        key = (id(x), x._version, *place)
        known = self._seen.get(key)
        if known is not None and known[0]() is x:
            return known[1]
        fresh = look_at(x, mask)
        self._seen[key] = weakref.ref(x), fresh
        return fresh

    def clear(self) -> None:
        """Forget everything; called between forwards."""
        self._seen.clear()


class HistogramCalibrator:
    """Shared statistics of one point, from which every algorithm reads its amax.

    Elements are counted per FP16 magnitude (31744 finite ones, relative width 2**-11 to 2**-10): no range is chosen
    beforehand, merging is addition, and 31744 int64 are all it ever holds. pytorch-quantization's histogram has 2048
    linear bins that stretch with the data.

    `batches` receives the largest magnitude of every row for the per-batch algorithms. Without a pass that says which
    samples a forward holds (`BatchMaxima.rows`), every update is a batch.
    """

    def __init__(self, algorithm: Algorithm, memo: TensorMemo | None = None, batches: BatchMaxima | None = None):
        self.algorithm = algorithm
        self.counts = torch.zeros(FINITE_FP16_MAGNITUDES, dtype=torch.int64, device="cpu")  # whatever a loader set
        self.maximum = MaxCalibrator()
        self.batches = batches
        if batches is None and algorithm.name in PER_BATCH:
            self.batches = BatchMaxima(algorithm.moving_rate or DEFAULT_MOVING_RATE)
        self._memo = memo

    def update(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Count the magnitudes of `x`."""
        seen = look_at(x, mask) if self._memo is None else self._memo.seen(x, mask)
        self.maximum.take(seen.largest)
        if seen.counts is not None:
            self.counts += seen.counts
        if self.batches is not None and seen.counts is not None:
            self.batches.add(seen.rows)

    def merge(self, other: HistogramCalibrator) -> None:
        """Add the counts; batches of `other` follow those seen here."""
        self.counts += other.counts
        self.maximum.merge(other.maximum)
        if self.batches is not None and other.batches is not None:
            self.batches.merge(other.batches)

    def amax(self, point: str) -> float:
        """The amax by this calibrator's own algorithm."""
        return amax_of({point: self}, self.algorithm)[point]


def amax_of(calibrators: Mapping[str, HistogramCalibrator], algorithm: Algorithm) -> dict[str, float]:
    """The amax of every point by `algorithm`, chosen for all points at once.

    Raises CalibrationError naming the first point that saw no data, NaN or infinity, or only zeros, and how many more.
    """
    problems = [problem for name, c in calibrators.items() if (problem := problem_of(c.maximum.largest, name))]
    if problems:
        raise CalibrationError(problems[0] + (f" (and {len(problems) - 1} more points)" if len(problems) > 1 else ""))
    if not calibrators:
        return {}
    if algorithm.name in PER_BATCH:
        return {name: _of_batches(c, algorithm, name) for name, c in calibrators.items()}
    if algorithm.name == "max":
        return {name: c.maximum.largest for name, c in calibrators.items()}
    # Points that read one tensor (q, k, v and the residual beside them) have equal counts and one threshold.
    keys = {name: (c.maximum.largest, c.counts.numpy().tobytes()) for name, c in calibrators.items()}
    different = {key: calibrators[name] for name, key in keys.items()}
    largest = torch.tensor([c.maximum.largest for c in different.values()], dtype=torch.float64)
    counts = Counts(torch.stack([c.counts for c in different.values()]), largest)
    found = choose_thresholds(algorithm.name, counts, algorithm.percentile or DEFAULT_PERCENTILE).tolist()
    amax = dict(zip(different, found, strict=True))
    return {name: amax[key] for name, key in keys.items()}


def _of_batches(calibrator: HistogramCalibrator, algorithm: Algorithm, point: str) -> float:
    if calibrator.batches is None:
        raise CalibrationError(f"{point}: {algorithm.name} needs the maxima of batches, which this pass did not keep")
    value = calibrator.batches.average() if algorithm.name == "avg" else calibrator.batches.moving_average()
    return value if value > 0 else calibrator.maximum.largest


def look_at(x: Tensor, mask: Tensor | None) -> Seen:
    """Count the magnitudes of `x` where `mask` is True; the first dimension is the sample."""
    x, ignored = x.detach(), 0
    if mask is not None:
        ignored = (mask.numel() - int(mask.sum())) * (x.numel() // mask.numel())
    if x.numel() == ignored:
        return Seen(None, -math.inf, [])
    rows = row_maxima(x, mask if ignored else None)
    largest = float(rows.max())
    if not math.isfinite(largest):
        return Seen(None, largest, [])  # an error at amax()
    if largest > LARGEST_FP16:
        x = x.clamp(-LARGEST_FP16, LARGEST_FP16)
    # Bits without the sign are the magnitude's pattern. Padding becomes 0, whose count is corrected; selecting the
    # unmasked elements instead takes fifteen times as long.
    kept = MAGNITUDE_BITS if not ignored or mask is None else mask.to(torch.int16) * MAGNITUDE_BITS
    counts = _counted((x.half().view(torch.int16) & kept).reshape(-1))
    counts[0] -= ignored
    return Seen(counts, largest, rows.tolist())


def _counted(patterns: Tensor) -> Tensor:
    """Count each of the 31744 patterns in `patterns` [n], on every core; bincount itself uses one."""
    parts = patterns.chunk(torch.get_num_threads()) if len(patterns) > WORTH_A_THREAD else (patterns,)
    counted = _threads().map(_bincount, parts) if len(parts) > 1 else map(_bincount, parts)
    return functools.reduce(torch.add, counted)


def _bincount(patterns: Tensor) -> Tensor:
    return torch.bincount(patterns, minlength=FINITE_FP16_MAGNITUDES)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="count")
