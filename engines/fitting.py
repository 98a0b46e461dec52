"""Weights whose products with any two neighbouring u8 activations fit into INT16, and what that costs them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.instructions import LARGEST_PAIR


def fitting_weights(codes: NDArray[np.int8], shared: bool) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Codes [in, out] whose pairs of inputs fit, and the growth [out] of every output's scale, 1 where all did before.

    `shared`: all outputs have one scale, which grows for the worst of them.
    """
    growth = np.ones(codes.shape[1])
    fitted = codes.astype(np.float64)
    while (over := _largest_pair(fitted) / LARGEST_PAIR).max(initial=0.0) > 1:
        growth *= np.maximum(over.max() if shared else over, 1.0)
        fitted = np.rint(codes / growth)  # rounding can leave a pair one too large: once more then
    return fitted.astype(np.int8), growth


def _largest_pair(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest sum [out] of two neighbouring inputs' codes of one sign."""
    even = np.concatenate([codes, np.zeros((len(codes) % 2, codes.shape[1]))])
    pairs = even.reshape(-1, 2, codes.shape[1])
    sums = np.maximum(np.maximum(pairs, 0).sum(axis=1), np.maximum(-pairs, 0).sum(axis=1))
    return np.asarray(sums.max(axis=0, initial=0.0), np.float64)
