"""Equalization inside attention: channels trade their range between two factors of one product, exactly.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv 1906.04721), here
between the projections that attention multiplies. The score is a sum over channels of q_c * k_c: scaling q_c up and
k_c down by the same factor changes nothing. The context is a weighted sum of value rows, so a value channel scaled down
and the output projection's column scaled up change nothing either. Factors are powers of two: bit-exact in floating
point (barring overflow), and no operation is added. Nothing else in a post-LN block commutes: LayerNorm also feeds the
residual, and GELU is not linear.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qdq.calibrate.treatments.attentions import attentions
from qdq.calibrate.treatments.observe import Observed, context_reader, value_readers
from qdq.calibrate.treatments.smooth import choose_smoothing
from qdq.inject.quantizer import QuantLinear
from qdq.inject.relative import TABLE

LARGEST_EXPONENT = 6  # channels that differ by more are dead; blowing them up would only add noise


def equalize(module: nn.Module, observed: Observed) -> list[dict[str, Any]]:
    """Equalize every attention of `module`; updates `observed`. Returns rows for calibration.json."""
    names = {id(linear): name for group in observed.groups for name, linear in group.linears.items()}
    decisions: list[dict[str, Any]] = []
    for path, (query, key, _) in attentions(module):
        alone = not hasattr(module.get_submodule(path), TABLE)  # relative positions multiply query and key, too
        if alone and id(query) in names and id(key) in names:
            factor = query_factor(observed.outputs[names[id(query)]], observed.outputs[names[id(key)]])
            _scale_rows(query, factor)
            _scale_rows(key, 1 / factor)
            decisions.append(_row(path, "query/key", factor))
    for path, value, group in value_readers(module, observed):
        decision, wanted = choose_smoothing(group, worth_it=1.0)
        factor = power_of_two(wanted / wanted.median()) if decision["alpha"] is not None else torch.ones_like(wanted)
        _scale_rows(value, factor)
        for linear in group.linears.values():
            linear.treat("_column_scale", 1 / factor)
        group.seen.scale(factor)
        decisions.append(_row(path, "value/output", factor))
    return decisions


def context_readers(module: nn.Module, observed: Observed) -> set[str]:
    """Names of the groups that read an attention's context.

    A multiplication there would stand between the second attention matmul and its quantizer: TensorRT then fuses no
    INT8 attention (`qdq check`), and equalization has already reduced the error there for free.
    """
    found = (context_reader(path, observed) for path, _ in attentions(module))
    return {group.name for group in found if group is not None}


def _row(path: str, pair: str, factor: Tensor) -> dict[str, Any]:
    changed = int((factor != 1).sum())
    return {"point": path, "pair": pair, "channels": changed, "largest_factor": float(factor.max())}


def query_factor(query: Tensor, key: Tensor) -> Tensor:
    """Factors of the query channels, [C], that give query and key the same spread over their channels.

    Each product q_c * k_c keeps its range; dividing it evenly puts every channel at sqrt(q_c * k_c), relative to the
    layer's typical one, so that neither tensor's largest channel decides the scale alone.
    """
    tiny = torch.finfo(torch.float16).tiny
    ratio = (key.clamp(min=tiny) / query.clamp(min=tiny)).sqrt()
    return power_of_two(ratio / ratio.median())


def power_of_two(factor: Tensor) -> Tensor:
    """The nearest power of two, within 2**±6."""
    return torch.exp2(factor.log2().round().clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT))


def _scale_rows(linear: QuantLinear, factor: Tensor) -> None:
    known = linear._row_scale
    linear.treat("_row_scale", factor.clone() if known is None else known * factor)
