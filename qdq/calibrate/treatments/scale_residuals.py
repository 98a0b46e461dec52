"""Residual scaling: outlier channels of a residual add are divided by a power of two before both quantizers.

In front of a LayerNorm a few channels reach hundreds while the others stay near 1, so with one INT8 scale per tensor
the others have two or three codes. Dividing channel c of both operands by f_c and multiplying channel c of their sum by
f_c changes nothing in floating point, bit for bit, and lets all channels share the codes. It is equalization (Nagel et
al., arXiv 1906.04721) between an operand and the operation behind it. The linear that computes one operand divides in
its rows, for nothing; the other operand's division and the sum's multiplication stay in the graph, in front of a
quantizer and of a LayerNorm, where an engine fuses them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qdq.calibrate.treatments.arithmetic import spread
from qdq.calibrate.treatments.clip import OPERANDS, choose_ranges
from qdq.calibrate.treatments.observe import Observed, Seen
from qdq.calibrate.treatments.smooth import best_factor
from qdq.inject.blocks import Residual
from qdq.inject.quantizer import QuantLinear

ALPHAS = (0.5, 0.75, 1.0)  # share of the difference between channels that is taken away
LARGEST_EXPONENT = 10
TRIED_ROWS = 512
WORTH_IT = 0.7  # above this ratio of the errors the two operations it adds are left out
# Path of an add -> path of the linear that computes its local operand, in the families' spellings.
PRODUCERS = (
    (r"(.*)attention_add", r"\1attention.out_lin"),
    (r"(.*)ffn_add", r"\1ffn.lin2"),
    (r"(.*)", r"\1.dense"),
    (r"(.*)", r"\1.attn.o"),
    (r"(.*)", r"\1.ffn_output"),
)


def scale_residuals(
    module: nn.Module, observed: Observed, apart: Collection[str] = frozenset()
) -> list[dict[str, Any]]:
    """Scale every observed residual add but those `apart` where it pays; updates `observed`.

    Returns rows for calibration.json.
    """
    parts = dict(module.named_modules())
    rows: list[dict[str, Any]] = []
    for name, seen in observed.residuals.items():
        if name in apart:
            continue
        add, linear = parts[name], producer(name, parts)
        assert isinstance(add, Residual)  # only those are observed as residuals
        if linear is None:
            reason = "declined: what computes the local operand is not a quantized linear"
            rows.append({"point": name, "alpha": None, "reason": reason})
            continue
        factors = {alpha: _factor(seen, alpha) for alpha in ALPHAS}
        tried = [(_error(add, seen, factor), alpha, factor) for alpha, factor in factors.items()]
        row, factor = best_factor(name, _error(add, seen, None), tried, WORTH_IT)
        if row["alpha"] is not None:
            _apply(add, linear, seen, factor)
        rows.append(row)
    return rows


def drop_unused_scales(module: nn.Module) -> list[str]:
    """Take the scale, and its two operations, off every add that no longer quantizes an operand; their paths.

    Exact: the linear's rows, its weight's amax and its bias shift are multiplied back by powers of two. A weight with
    one amax for all rows keeps the scale, because its codes were rounded with it. A shared skip that is no longer
    quantized loses its factor, too, which changes float rounding only.
    """
    parts, dropped = dict(module.named_modules()), []
    for name, add in parts.items():
        if isinstance(add, Residual) and add._skip_factor is not None and add.add_residual_input_quantizer is None:
            add.treat("_skip_factor", None)
            dropped.append(name)
        if not isinstance(add, Residual) or add._channel_scale is None or add.quantized_operands:
            continue
        linear = producer(name, parts)
        if linear is not None and _unscale(linear, add._channel_scale):
            add.treat("_channel_scale", None)
            dropped.append(name)
    return dropped


def _unscale(linear: QuantLinear, factor: Tensor) -> bool:
    point = linear._weight_quantizer
    if point is not None:
        if point.amax is None or point.axis != 0:
            return False
        point.set_amax(point.amax * factor.view(-1, *[1] * (point.amax.dim() - 1)))
    assert linear._row_scale is not None  # `_apply` gave it
    rows = linear._row_scale * factor
    linear.treat("_row_scale", None if bool((rows == 1).all()) else rows)
    if linear._bias_shift is not None:
        linear.treat("_bias_shift", linear._bias_shift * factor)
    return True


def producer(name: str, parts: Mapping[str, nn.Module]) -> QuantLinear | None:
    """The linear that computes the local operand of the add at path `name`; None when it is not a quantized one."""
    for pattern, path in PRODUCERS:
        match = re.fullmatch(pattern, name)
        linear = parts.get(match.expand(path)) if match else None
        if isinstance(linear, QuantLinear):
            return linear
    return None


def _factor(seen: tuple[Seen, Seen], alpha: float) -> Tensor:
    """[H], powers of two: the larger operand's channel over the middle one, to the power of `alpha`."""
    largest = torch.maximum(seen[0].largest, seen[1].largest)
    relative = (largest / largest.median().clamp(min=torch.finfo(torch.float16).tiny)).clamp(min=2.0**-LARGEST_EXPONENT)
    return torch.exp2((alpha * relative.log2()).round().clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT))


def _error(add: Residual, seen: tuple[Seen, Seen], factor: Tensor | None) -> float:
    """The error that the best ranges leave."""
    divisor = torch.ones(1) if factor is None else factor
    named = dict(zip(OPERANDS, seen, strict=True))
    operands = {name: spread(each.rows, TRIED_ROWS) / divisor for name, each in named.items()}
    largest = {name: float((named[name].largest / divisor).amax()) for name in add.quantized_operands}
    found = choose_ranges(operands, largest, factor)
    return min(error for _, error in found.values())


def _apply(add: Residual, linear: QuantLinear, seen: tuple[Seen, Seen], factor: Tensor) -> None:
    add.treat("_channel_scale", factor.clone())
    known = linear._row_scale
    linear.treat("_row_scale", 1 / factor if known is None else known / factor)
    for each in seen:
        each.scale(1 / factor)
