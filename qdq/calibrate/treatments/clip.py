"""Clipping: the range of a residual operand by the error of the normalized sum, where its own error misleads.

A few elements at 300 decide the variance that everything else is divided by, while the bulk sits near 1: neither the
largest magnitude nor any error of the tensor itself finds the range that serves LayerNorm best. Ranges of linear inputs
are left alone: once smoothed they have no outliers, and clipping them only cost accuracy (docs/calibration.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qdq.calibrate.treatments.arithmetic import fake_quantize, mean_square, normalized, spread
from qdq.calibrate.treatments.observe import Observed, Seen
from qdq.inject.blocks import Residual
from qdq.inject.quantizer import TensorQuantizer

HALVINGS = 10  # residual operands are tried down to 1/1000 of their largest magnitude, in steps of sqrt(1/2)
RESIDUAL_ROWS = 2048
ROUNDS = 2  # each operand is chosen with the other one as found


def choose_clips(module: nn.Module, observed: Observed, maxima: Mapping[str, float]) -> list[dict[str, Any]]:
    """Set the amax of every residual operand observed; returns rows for calibration.json.

    `maxima`: the largest magnitude of every point over all of the data.
    """
    rows: list[dict[str, Any]] = []
    adds = {name: part for name, part in module.named_modules() if isinstance(part, Residual)}
    for name, (local, residual) in observed.residuals.items():
        rows += _residual_clips(adds[name], {"local": local, "residual": residual}, maxima)
    return rows


def _residual_clips(add: Residual, seen: Mapping[str, Seen], maxima: Mapping[str, float]) -> list[dict[str, Any]]:
    points = quantized_operands(add)
    operands = {name: spread(operand.rows, RESIDUAL_ROWS) for name, operand in seen.items()}
    found = choose_ranges(operands, {name: maxima[point.point] for name, point in points.items()}, add._channel_scale)
    for name, (amax, _) in found.items():
        points[name].set_amax(torch.tensor(amax))
    return [
        {"point": points[name].point, "largest": maxima[points[name].point], "amax": amax, "error": error}
        for name, (amax, error) in found.items()
    ]


def quantized_operands(add: Residual) -> dict[str, TensorQuantizer]:
    """The placed quantizers of an add, by operand."""
    points = {"local": add.add_local_input_quantizer, "residual": add.add_residual_input_quantizer}
    return {name: point for name, point in points.items() if isinstance(point, TensorQuantizer)}


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
