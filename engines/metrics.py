"""Arithmetic of comparing two executions: cosine, running error sums, shares of equal answers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def cosine(expected: Vector, actual: Vector) -> float:
    """Cosine of the angle between two flattened arrays, in [-1, 1]; 1 when both are zero, 0 when one of them is.

    float64 throughout: float32 sums over a [tokens, vocabulary] output would lose the digits that matter near 1.
    """
    left, right = expected.ravel(), actual.ravel()
    squares = float(left @ left) * float(right @ right)
    if squares == 0:
        return 1.0 if not left.any() and not right.any() else 0.0
    # One square root of the product, not a product of roots: equal vectors then give exactly 1.
    return max(-1.0, min(1.0, float(left @ right) / math.sqrt(squares)))


@dataclass
class ErrorSum:
    """Running sums of |actual - expected| over any number of arrays."""

    elements: int = 0
    absolute: float = 0.0
    squared: float = 0.0
    largest: float = 0.0

    def add(self, expected: Vector, actual: Vector) -> None:
        """Include two arrays of equal shape."""
        error = np.abs(actual - expected)
        self.elements += error.size
        self.absolute += float(error.sum())
        self.squared += float(np.square(error).sum())
        self.largest = max(self.largest, float(error.max(initial=0.0)))

    def as_json(self) -> dict[str, Any]:
        """Largest and mean absolute error, and mean squared error."""
        count = max(1, self.elements)
        return {
            "max_abs_error": self.largest,
            "mean_abs_error": self.absolute / count,
            "mse": self.squared / count,
        }

    @classmethod
    def merged(cls, parts: Iterable[ErrorSum]) -> ErrorSum:
        """One sum over everything the parts have seen."""
        whole = cls()
        for part in parts:
            whole.elements += part.elements
            whole.absolute += part.absolute
            whole.squared += part.squared
            whole.largest = max(whole.largest, part.largest)
        return whole


@dataclass
class Share:
    """Share of the outcomes counted that were true."""

    yes: int = 0
    of: int = 0

    def add(self, outcomes: NDArray[np.bool_]) -> None:
        """Include an array of outcomes."""
        self.yes += int(np.count_nonzero(outcomes))
        self.of += outcomes.size

    def value(self) -> float | None:
        """yes / of; None when nothing was counted."""
        return self.yes / self.of if self.of else None
