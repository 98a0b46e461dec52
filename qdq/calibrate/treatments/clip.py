"""Clipping: the range of a residual operand by the error of the normalized sum, where its own error misleads.

A few elements at 300 decide the variance that everything else is divided by, while the bulk sits near 1: neither the
largest magnitude nor any error of the tensor itself finds the range that serves LayerNorm best. Ranges of linear inputs
are left alone: once smoothed they have no outliers, and clipping them only cost accuracy (docs/calibration.md).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qdq.calibrate.treatments.arithmetic import fake_quantize, mean_square, normalized, spread
from qdq.calibrate.treatments.observe import Observed
from qdq.inject.blocks import Residual

HALVINGS = 10  # residual operands are tried down to 1/1000 of their largest magnitude, in steps of sqrt(1/2)
RESIDUAL_ROWS = 2048
OPERANDS = ("local", "residual")  # of an add, in the order they are observed
ROUNDS = 2  # each operand is chosen with the other one as found


def choose_clips(
    module: nn.Module, observed: Observed, maxima: Mapping[str, float], apart: Collection[str] = frozenset()
) -> list[dict[str, Any]]:
    """Set the amax of every residual operand observed but those of the adds `apart`; rows for calibration.json.

    `maxima`: the largest magnitude of every point over all of the data.
    """
    rows: list[dict[str, Any]] = []
    parts = dict(module.named_modules())
    for path, seen in observed.residuals.items():
        if path in apart:
            continue
        add = parts[path]
        assert isinstance(add, Residual)  # only those are observed as residuals
        points = add.quantized_operands
        operands = {name: spread(each.rows, RESIDUAL_ROWS) for name, each in zip(OPERANDS, seen, strict=True)}
        largest = {name: maxima[point.point] for name, point in points.items()}
        for name, (amax, error) in choose_ranges(operands, largest, add._channel_scale).items():
            points[name].set_amax(torch.tensor(amax))
            rows.append({"point": points[name].point, "largest": largest[name], "amax": amax, "error": error})
    return rows


def choose_ranges(
    operands: Mapping[str, Tensor], largest: Mapping[str, float], factor: Tensor | None = None
) -> dict[str, tuple[float, float]]:
    """Coordinate descent over the operands' amax by the mean squared error of LayerNorm(factor * (local + residual)).

    Args:
        operands: rows [n, H] of both, as they reach their quantizers.
        largest: largest magnitude of each operand that is quantized.
        factor: [H], multiplies the sum.

    Returns (amax, the error that is left) of every quantized operand.
    """

    def sum_of(parts: Mapping[str, Tensor]) -> Tensor:
        total = parts["local"] + parts["residual"]
        return normalized(total if factor is None else total * factor)

    exact = sum_of(operands)
    quantized = dict(operands)
    found: dict[str, tuple[float, float]] = {}
    for _ in range(ROUNDS):
        for name in largest:
            tried = []
            for amax in _thresholds(largest[name]):
                rounded = fake_quantize(operands[name], amax)
                tried.append((mean_square(sum_of({**quantized, name: rounded}) - exact), amax, rounded))
            error, amax, quantized[name] = min(tried, key=lambda entry: entry[0])
            found[name] = amax, error
    return found


def _thresholds(largest: float) -> list[float]:
    return [largest * 2 ** (-step / 2) for step in range(2 * HALVINGS + 1)]
