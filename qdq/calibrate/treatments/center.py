"""Value centering: a constant per value channel moves out of attention and into the bias behind it, exactly.

Softmax rows sum to one, so ``P (V + 1 c) = P V + c``: a constant taken off the value projection's bias comes
back through the output projection as ``W c``, and no operation is added. INT8 probabilities have steps of 1/127, and in
a long text most of them round to zero, so a row sums to less than one and the output is scaled by the deficit. Without
the common part of the values, the deficit scales only their differences.

The idea is SageAttention2's smoothing of V (Zhang et al., arXiv 2411.10958), which subtracts every text's mean at run
time. Here the constant is one of the calibration data, so it is free: the one with the least squared error of the
output. With D the rounding error of the probabilities and m the sums of its rows, ``D (V - 1 c) = D V - m c``: linear
regression of ``D V`` on m.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from qdq.calibrate.treatments.observe import Observed, value_readers


def center_values(module: nn.Module, observed: Observed) -> list[dict[str, Any]]:
    """Center the values of every attention of `module` with quantized probabilities; updates `observed`.

    Returns rows for calibration.json. Comes before every treatment that scales rows or columns.
    """
    names = {id(linear): name for group in observed.groups for name, linear in group.linears.items()}
    decisions: list[dict[str, Any]] = []
    for path, value, group in value_readers(module, observed):
        loss = observed.losses.get(path)
        if loss is None:
            continue
        # If almost no probability rounds to zero the regression is ill-conditioned, so limit the constant to the
        # largest magnitude of its channel.
        largest = observed.outputs[names[id(value)]].double()
        center = loss.center.clamp(-largest, largest)
        (output,) = group.linears.values()
        value.treat("_bias_offset", -center.float())
        output.treat("_bias_offset", (output.effective_weight.detach().double() @ center).float())
        group.seen.shift(-center.float())
        decisions.append({"point": path, "error_left": loss.left(center), "largest_offset": float(center.abs().amax())})
    return decisions
