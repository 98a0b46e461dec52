"""Clip search: the range of a point by the error of what it feeds, where the tensor's own statistics mislead.

A linear's input matters as its product with the weight, and a residual operand as its part of the normalized sum: there
a few elements at 300 decide the variance that everything else is divided by, while the bulk sits near 1. Neither is
seen by an error of the tensor itself, whatever its power.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qdq.inject.blocks import Residual
from qdq.inject.quantizer import QuantLinear, TensorQuantizer
from qdq.ptq.arithmetic import fake_quantize, mean_square, normalized, quantized_weight, spread
from qdq.ptq.observe import Group, Observed, Seen
from qdq.ptq.smooth import searched

FRACTIONS = (1.0, 0.85, 0.7, 0.55)  # of a linear input's largest magnitude; smoothing has taken its outliers
HALVINGS = 10  # residual operands are searched down to 1/1000 of their largest magnitude, in steps of sqrt(1/2)
RESIDUAL_ROWS = 512
ROUNDS = 2  # each operand is searched with the other one as found


def search_clips(module: nn.Module, observed: Observed, maxima: Mapping[str, float]) -> list[dict[str, Any]]:
    """Set the amax of every linear input and residual operand observed; returns rows for calibration.json.

    `maxima`: the largest magnitude of every point over all of the data.
    """
    rows = [_linear_clip(group, maxima) for group in observed.groups]
    adds = {name: part for name, part in module.named_modules() if isinstance(part, Residual)}
    for name, (local, residual) in observed.residuals.items():
        rows += _residual_clips(adds[name], {"local": local, "residual": residual}, maxima)
    return rows


def _linear_clip(group: Group, maxima: Mapping[str, float]) -> dict[str, Any]:
    linears = list(group.linears.values())
    weight = group.weight
    points = [linear._input_quantizer for linear in linears if linear._input_quantizer is not None]
    largest = maxima[points[0].point]
    rows, importance = searched(group)
    exact, rounded = rows @ weight.T, torch.cat([_nearest(linear) for linear in linears])
    errors = [mean_square(fake_quantize(rows, largest * part) @ rounded.T - exact, importance) for part in FRACTIONS]
    amax = largest * FRACTIONS[errors.index(min(errors))]
    for point in points:
        point.set_amax(torch.tensor(amax))
    return {"point": f"{group.name}.input_quantizer", "largest": largest, "amax": amax}


def _nearest(linear: QuantLinear) -> Tensor:
    point = linear._weight_quantizer
    assert point is not None
    return quantized_weight(linear.effective_weight.detach(), point.axis, point._num_bits)


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
