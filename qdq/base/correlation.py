"""Correlation of two columns of numbers, as scores of a task and as closeness of two executions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def pearson(left: Vector, right: Vector) -> float:
    """Correlation of two [samples] arrays, in [-1, 1]; 0 when one of them is constant."""
    a, b = left - left.mean(), right - right.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return max(-1.0, min(1.0, float(a @ b) / scale)) if scale > 0 else 0.0


def spearman(left: Vector, right: Vector) -> float:
    """Correlation of the ranks of two [samples] arrays; equal values share the mean of their ranks."""
    return pearson(_ranks(left), _ranks(right))


def _ranks(values: Vector) -> Vector:
    """Rank of each value from 0, equal ones sharing the mean of their places."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count + 1) / 2)[place])
