"""Smoothing: outlier channels of a linear's input are divided by a factor, the weight's columns multiplied by it.

Source: Xiao et al., "SmoothQuant" (arXiv 2211.10438): factor_j = max|x_j|**alpha / max|w_j|**(1 - alpha). There
one alpha serves the whole model and LayerNorm absorbs the division. In a post-LN encoder LayerNorm also feeds the
residual, and GELU is not linear, so the division stays in the graph as one multiplication per group of linears that
share an input; alpha is chosen per group by the linears' output error, and a group whose error does not fall enough
keeps none.

Where a value projection feeds the input through attention, its rows absorb the factor exactly, and nothing is added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from qdq.calibrate.treatments.arithmetic import fake_quantize, mean_square, spread
from qdq.calibrate.treatments.observe import Group
from qdq.inject.quantizer import QuantLinear, weight_amax

ALPHAS = (0.5, 0.65, 0.75, 0.85, 0.95, 1.0)
TRIED_ROWS = 384
# The multiplication stays in the graph, so it must pay: above this ratio of the errors it is left out.
WORTH_IT = 0.7
# Weight of rounding errors that a later, error-compensating rounding makes smaller: more of the range can then go to
# the activations, which nothing compensates. Chosen, not measured per model.
COMPENSATED = 0.1
FLOOR = 1e-3  # of the median channel: an almost silent channel must not be blown up to the others' range


def choose_smoothing(
    group: Group,
    worth_it: float = WORTH_IT,
    weight_share: float = 1.0,
    beside: Callable[[Tensor, Tensor], float] = lambda factor, amax: 0.0,
) -> tuple[dict[str, Any], Tensor]:
    """The decision for `group`, and the factor [in] its input is multiplied by: the best one, even if declined.

    `weight_share`: share of the error of rounding weights to nearest that will remain; `COMPENSATED` where a later
    rounding compensates it. `beside`: relative error that a factor and its amax cause in another reader of the input.
    """
    first = next(iter(group.linears.values()))
    weight, largest = group.weight, group.seen.largest
    rows = spread(group.seen.rows, TRIED_ROWS)
    exact = rows @ weight.T
    power = mean_square(exact) or 1.0

    def error(factor: Tensor) -> float:
        smoothed, scaled, amax = rows * factor, weight / factor, (largest * factor).amax()
        of_inputs = fake_quantize(smoothed, amax) @ scaled.T - exact
        of_weights = smoothed @ (_rounded(scaled, first) - scaled).T
        return (mean_square(of_inputs) + weight_share * mean_square(of_weights)) / power + beside(factor, amax)

    before = error(torch.ones_like(largest))
    factors = {alpha: smoothing_factor(largest, weight, alpha) for alpha in ALPHAS}
    tried = [(error(factor), alpha, factor) for alpha, factor in factors.items()]
    return best_factor(group.name, before, tried, worth_it)


def best_factor(
    point: str, before: float, tried: Iterable[tuple[float, float, Tensor]], worth_it: float
) -> tuple[dict[str, Any], Tensor]:
    """The factor with the least error of `tried` (error, alpha, factor), and the decision on it for calibration.json.

    It is applied where its error is below `worth_it` times the error `before`; a declined one has the alpha None.
    """
    after, alpha, factor = min(tried, key=lambda entry: entry[0])
    row = {"point": point, "alpha": alpha, "before": before, "after": after, "reason": "applied"}
    if not after < worth_it * before:
        ratio = after / before if before else 1.0
        row |= {"alpha": None, "reason": f"declined: the error would be {ratio:.2f} times as large"}
    return row, factor


def smoothing_factor(largest: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """1 / SmoothQuant's factor, [in], scaled so that the largest magnitude stays the same."""
    activation = largest.clamp(min=float(largest.median()) * FLOOR).clamp(min=torch.finfo(torch.float16).tiny)
    columns = weight.abs().amax(0)
    columns = columns.clamp(min=float(columns.median()) * FLOOR).clamp(min=torch.finfo(torch.float16).tiny)
    factor = columns ** (1 - alpha) / activation**alpha
    return factor * (largest.amax() / (largest * factor).amax())


def _rounded(weight: Tensor, linear: QuantLinear) -> Tensor:
    point = linear._weight_quantizer
    assert point is not None  # only quantized linears are observed
    return fake_quantize(weight, weight_amax(weight, point.axis), point._num_bits)


def apply_smoothing(group: Group, factor: Tensor) -> None:
    """Give every linear of `group` the factor, and scale the observed statistics alike."""
    for linear in group.linears.values():
        linear.treat("_smoothing", factor.clone())
    group.seen.scale(factor)
