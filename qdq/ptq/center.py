"""Value centering: the mean of every value channel moves out of attention and into the bias behind it, exactly.

Softmax rows sum to one, so ``P (V + 1 c) = P V + c``: whatever constant is taken off the value projection's bias comes
back through the output projection as ``W c``, and no operation is added. What it is for: INT8 probabilities have steps
of 1/127, and in a long text most of them round to zero. The mass that is lost takes the values' mean with it; once that
mean is zero there is nothing to lose but differences. It is the idea of SageAttention2's smoothing of V (Zhang et al.,
arXiv 2411.10958), with a constant from the calibration data, so that it costs nothing at run time.

The key's mean cancels in softmax likewise; taking it off was tried and changed nothing (docs/calibration.md).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from qdq.ptq.equalize import value_readers
from qdq.ptq.observe import Observed


def center_values(module: nn.Module, observed: Observed) -> list[dict[str, Any]]:
    """Center the values of every attention of `module`; `observed` is brought up to date.

    Returns rows for calibration.json. Comes before every treatment that scales rows or columns.
    """
    seen = {name: group.seen for group in observed.groups for name in group.linears}
    decisions: list[dict[str, Any]] = []
    for path, name, value, group in value_readers(module, observed):
        (output,) = group.linears.values()
        center = value.effective_weight.detach().double() @ seen[name].rows.double().mean(0)
        if value.effective_bias is not None:
            center = center + value.effective_bias.detach().double()
        value.treat("_bias_offset", -center.float())
        output.treat("_bias_offset", (output.effective_weight.detach().double() @ center).float())
        group.seen.shift(-center.float())
        decisions.append({"point": path, "largest_offset": float(center.abs().amax())})
    return decisions
