"""Clip search: the range of a residual operand by the error of the normalized sum, where its own error misleads.

A few elements at 300 decide the variance that everything else is divided by, while the bulk sits near 1: neither the
largest magnitude nor any error of the tensor itself finds the range that serves LayerNorm best. Ranges of linear inputs
are not searched: once smoothed they have no outliers, and clipping them only cost accuracy (docs/calibration.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from qdq.inject.blocks import Residual
from qdq.inject.quantizer import TensorQuantizer
from qdq.ptq.arithmetic import fake_quantize, mean_square, normalized, spread
from qdq.ptq.observe import Observed, Seen

HALVINGS = 10  # residual operands are searched down to 1/1000 of their largest magnitude, in steps of sqrt(1/2)
RESIDUAL_ROWS = 2048
ROUNDS = 2  # each operand is searched with the other one as found


def search_clips(module: nn.Module, observed: Observed, maxima: Mapping[str, float]) -> list[dict[str, Any]]:
    """Set the amax of every residual operand observed; returns rows for calibration.json.

    `maxima`: the largest magnitude of every point over all of the data.
    """
    rows: list[dict[str, Any]] = []
    adds = {name: part for name, part in module.named_modules() if isinstance(part, Residual)}
    for name, (local, residual) in observed.residuals.items():
        rows += _residual_clips(adds[name], {"local": local, "residual": residual}, maxima)
    return rows


def _residual_clips(add: Residual, seen: Mapping[str, Seen], maxima: Mapping[str, float]) -> list[dict[str, Any]]:
    """Coordinate descent over both operands' thresholds by the error of the normalized sum."""
    operands = {name: spread(operand.rows, RESIDUAL_ROWS) for name, operand in seen.items()}
    points = {
        "local": add.add_local_input_quantizer,
        "residual": add.add_residual_input_quantizer,
    }
    exact = normalized(operands["local"] + operands["residual"])
    quantized = dict(operands)
    chosen: dict[str, dict[str, Any]] = {}
    for _ in range(ROUNDS):
        for name, other in (("local", "residual"), ("residual", "local")):
            point = points[name]
            if not isinstance(point, TensorQuantizer):
                continue
            largest = maxima[point.point]
            tried = []
            for amax in _thresholds(largest):
                candidate = fake_quantize(operands[name], amax)
                tried.append((mean_square(normalized(candidate + quantized[other]) - exact), amax, candidate))
            error, amax, quantized[name] = min(tried, key=lambda entry: entry[0])
            point.set_amax(torch.tensor(amax))
            chosen[name] = {"point": point.point, "largest": largest, "amax": amax, "error": error}
    return list(chosen.values())


def _thresholds(largest: float) -> list[float]:
    return [largest * 2 ** (-step / 2) for step in range(2 * HALVINGS + 1)]
