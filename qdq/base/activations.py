"""Functions behind a classifier's logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def softmax(logits: NDArray[Any]) -> Values:
    """Probabilities over the last axis, in float64."""
    values = np.asarray(logits, dtype=np.float64)
    shares = np.exp(values - values.max(-1, keepdims=True))
    return np.asarray(shares / shares.sum(-1, keepdims=True))


def _sigmoid(values: Values) -> Values:
    return np.exp(-np.logaddexp(0.0, -values))  # no overflow for large negative logits


# Activations a cross-encoder's config.json may name, by the last part of torch's name
ACTIVATIONS: Mapping[str, Callable[[Values], Values]] = {
    "identity": lambda values: values,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "relu": lambda values: np.maximum(values, 0.0),
}
