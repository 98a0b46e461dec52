"""Calibrators: from observed activations to an amax, in one pass, mergeable, independent of batching.

Each collects through `update`, combines through `merge` and answers through `amax`. Collected state is a maximum or
integer counts, so neither the order nor the grouping of the data changes the result by a single bit.
"""

from __future__ import annotations

import math
from typing import Protocol, Self

import torch
from torch import Tensor

from qdq.config import choice
from qdq.errors import CalibrationError

FINITE_FP16_MAGNITUDES = 31744  # bit patterns 0x0000..0x7BFF: 0 up to 65504 in increasing order
LARGEST_FP16 = 65504.0

DEFAULT_PERCENTILE = 99.99  # QDQBERT's recipe for BERT (transformers/examples/research_projects/quantization-qdqbert)


class Calibrator(Protocol):
    """Collects statistics of one point and turns them into an amax."""

    def update(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Add one tensor; elements where `mask` (broadcastable, bool) is False do not count."""
        ...

    def merge(self, other: Self) -> None:
        """Add everything `other` has seen, as if this calibrator had seen it too."""
        ...

    def amax(self, point: str) -> float:
        """The clipping magnitude. Raises CalibrationError naming `point` when the data cannot give one."""
        ...


class MaxCalibrator:
    """amax is the largest magnitude seen (pytorch-quantization's `max`)."""

    def __init__(self) -> None:
        self.largest = -math.inf  # nothing seen

    def update(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Track the largest magnitude; NaN sticks."""
        x, ignored = _erase(x, mask)
        self.take(_largest(x, ignored))

    def merge(self, other: MaxCalibrator) -> None:
        """Keep the larger of both."""
        self.take(other.largest)

    def take(self, value: float) -> None:
        """Add one magnitude."""
        self.largest = value if math.isnan(value) else max(self.largest, value)

    def amax(self, point: str) -> float:
        """The largest magnitude."""
        return _usable(self.largest, point)


class PercentileCalibrator:
    """amax is the smallest magnitude that `percentile` per cent of all elements do not exceed.

    The elements are counted per FP16 magnitude (31744 finite ones, relative width 2**-11 to 2**-10), so the answer
    equals ``numpy.quantile(|x| rounded to FP16, method="inverted_cdf")`` exactly, needs no range chosen beforehand,
    and merging is addition. pytorch-quantization's histogram has 2048 linear bins that stretch with the data.
    """

    def __init__(self, percentile: float = DEFAULT_PERCENTILE) -> None:
        if not 0 < percentile <= 100:
            raise CalibrationError(f"percentile: {percentile} is outside (0, 100]")
        self.percentile = percentile
        self.counts = torch.zeros(FINITE_FP16_MAGNITUDES, dtype=torch.int64)
        self.maximum = MaxCalibrator()

    def update(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Count the magnitudes of `x`."""
        x, ignored = _erase(x, mask)
        largest = _largest(x, ignored)
        self.maximum.take(largest)
        if not math.isfinite(largest):
            return  # nothing to count, or an error at amax()
        if largest > LARGEST_FP16:
            x = x.clamp(-LARGEST_FP16, LARGEST_FP16)
        patterns = x.half().view(torch.int16) & 0x7FFF  # without the sign: the magnitude's pattern
        self.counts += torch.bincount(patterns.reshape(-1), minlength=FINITE_FP16_MAGNITUDES)
        self.counts[0] -= ignored

    def merge(self, other: PercentileCalibrator) -> None:
        """Add the counts."""
        self.counts += other.counts
        self.maximum.merge(other.maximum)

    def amax(self, point: str) -> float:
        """The percentile of the magnitudes, never above the largest one."""
        largest = self.maximum.amax(point)
        total = int(self.counts.sum())
        rank = min(total, max(1, math.ceil(total * (self.percentile / 100))))
        bin_index = int(torch.searchsorted(self.counts.cumsum(0), rank))
        value = float(torch.tensor(bin_index, dtype=torch.int16).view(torch.float16))
        # A sparse tensor can have its percentile at zero; its largest magnitude is then the only scale there is.
        return min(value, largest) if value > 0 else largest


CALIBRATORS = ("max", "percentile")


def make_calibrator(algorithm: str, percentile: float = DEFAULT_PERCENTILE) -> Calibrator:
    """A fresh calibrator. Raises ConfigError naming the nearest algorithm when it is unknown."""
    choice(algorithm, CALIBRATORS, "calibrator")
    return MaxCalibrator() if algorithm == "max" else PercentileCalibrator(percentile)


def _erase(x: Tensor, mask: Tensor | None) -> tuple[Tensor, int]:
    """`x` with zeros where `mask` is False, and how many those are.

    Counting them out again is fifteen times faster than selecting the others: selection dominated calibration.
    """
    if mask is None or bool(mask.all()):
        return x, 0
    ignored = (mask.numel() - int(mask.sum())) * (x.numel() // mask.numel())
    return torch.where(mask, x, 0.0), ignored


def _largest(x: Tensor, ignored: int) -> float:
    """Largest magnitude, -inf when nothing counts, NaN when there is one."""
    if x.numel() == ignored:
        return -math.inf
    least, most = torch.aminmax(x)
    return float(torch.maximum(-least, most))


def _usable(largest: float, point: str) -> float:
    if largest == -math.inf:
        raise CalibrationError(f"{point}: saw no data; calibrate with text that reaches this point, or disable it")
    if not math.isfinite(largest):
        raise CalibrationError(f"{point}: saw NaN or infinity; check the checkpoint's weights, or disable this point")
    if largest == 0:
        raise CalibrationError(f"{point}: saw only zeros; more varied calibration text is needed, or disable it")
    return largest
