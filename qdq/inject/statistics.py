"""Statistics a quantizer collects: the interface of every calibrator, and the largest absolute value."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from qdq.errors import CalibrationError


class Calibrator(Protocol):
    """Collects statistics of one point and turns them into an amax."""

    def update(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Add one tensor; elements where `mask` (broadcastable, bool) is False do not count."""
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
        if x.numel() > 0 and (mask is None or bool(mask.any())):
            self.take(float(row_maxima(x.detach(), mask).max()))

    def merge(self, other: MaxCalibrator) -> None:
        """Keep the larger of both."""
        self.take(other.largest)

    def take(self, value: float) -> None:
        """Add one magnitude."""
        self.largest = value if math.isnan(value) else max(self.largest, value)

    def amax(self, point: str) -> float:
        """The largest magnitude."""
        if problem := problem_of(self.largest, point):
            raise CalibrationError(problem)
        return self.largest


def row_maxima(x: Tensor, mask: Tensor | None) -> Tensor:
    """Largest magnitude of every sample, [B]; NaN where there is one."""
    if x.dim() == 1:
        x = x[None]
    if mask is not None and mask.shape[-1] > 1:
        x, mask = torch.where(mask, x, 0.0), None
    largest = torch.maximum(x.amax(-1), -x.amin(-1))
    if mask is not None:
        largest = torch.where(mask.squeeze(-1), largest, 0.0)
    return largest.reshape(len(largest), -1).amax(1)


def problem_of(largest: float, point: str) -> str:
    """Return the reason this largest magnitude (-inf: nothing was seen) gives no scale; empty when it does."""
    if largest == -math.inf:
        return f"{point}: saw no data; calibrate with text that reaches this point, or disable it"
    if not math.isfinite(largest):
        return f"{point}: saw NaN or infinity; check the checkpoint's weights, or disable this point"
    if largest == 0:
        return f"{point}: saw only zeros; more varied calibration text is needed, or disable it"
    return ""
