"""Shared skips: a residual add reads the very codes that the linears behind the same tensor read.

What bypasses a block is also the input of the block's linears. Where both are quantized alike, with one factor and one
range, the graph holds a single QuantizeLinear, and TensorRT's kernels write and read that tensor as INT8 only; with a
range of its own the skip saves nothing (docs/tensorrt.md). So the factor is chosen by the errors of both readers:
of the linears' output, and of the normalized sum. Smoothing serves the skip, too: after it every channel has about the
same share of the codes. Both readers then see one tensor, so whatever calibrator gives them the same range. It is not
clipped: of nine thresholds the largest magnitude was best for each of 24 skips of all-MiniLM-L6-v2 and minilm-mrpc.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from qdq.calibrate.treatments.arithmetic import fake_quantize, mean_square, normalized, spread
from qdq.calibrate.treatments.observe import Group, Observed
from qdq.calibrate.treatments.smooth import apply_smoothing, choose_smoothing
from qdq.inject.blocks import Residual
from qdq.inject.families import family_of, skip_readers
from qdq.inject.quantizer import QuantLinear, TensorQuantizer

ROWS = 1024


@dataclass(frozen=True)
class Skip:
    """A residual add whose skip shares the quantizer of `group`, the linears that read the same tensor."""

    path: str
    add: Residual
    group: Group
    local: Tensor  # [n, H], sampled rows of the other operand
    residual: Tensor  # [n, H], the same rows of the skip, without a factor

    def error(self, factor: Tensor, amax: Tensor) -> float:
        """Mean squared error of the normalized sum when the skip times `factor` [H] is quantized with `amax`."""
        rounded = fake_quantize(self.residual * factor, amax) / factor
        return mean_square(normalized(self.local + rounded) - normalized(self.local + self.residual))


def readers(module: nn.Module, add: str) -> list[QuantLinear]:
    """The linears with quantized input and weight that read the residual operand of the add at path `add`, too."""
    owner = next((path, part) for path, part in module.named_modules() if isinstance(part, PreTrainedModel))
    paths = skip_readers(family_of(owner[1].config.model_type), add)
    parts = dict(module.named_modules())
    found = [parts.get(path) for path in paths]
    return [part for part in found if isinstance(part, QuantLinear) and _both(part)]


def _both(linear: QuantLinear) -> bool:
    return linear._input_quantizer is not None and linear._weight_quantizer is not None


def shared_skips(module: nn.Module, observed: Observed) -> list[Skip]:
    """Every observed add whose skip is quantized and read by an observed group of linears, too."""
    groups = {id(linear): group for group in observed.groups for linear in group.linears.values()}
    parts, found = dict(module.named_modules()), []
    for path, (local, residual) in observed.residuals.items():
        add = parts[path]
        assert isinstance(add, Residual)  # only those are observed as residuals
        known = [groups[id(linear)] for linear in readers(module, path) if id(linear) in groups]
        if known and add.add_residual_input_quantizer is not None:
            found.append(Skip(path, add, known[0], spread(local.rows, ROWS), spread(residual.rows, ROWS)))
    return found


def tie_skips(module: nn.Module) -> None:
    """Give every quantized skip the amax of a linear that reads the same tensor; those of a checkpoint may differ."""
    for path, add in module.named_modules():
        point = add.add_residual_input_quantizer if isinstance(add, Residual) else None
        if not isinstance(point, TensorQuantizer):
            continue
        for linear in readers(module, path):
            if linear._input_quantizer is not None and linear._input_quantizer.amax is not None:
                point.set_amax(linear._input_quantizer.amax)


def smooth_shared(skip: Skip, weight_share: float) -> dict[str, Any]:
    """Smooth the linears of `skip` by the errors of both readers, and give the add the same factor.

    The linears multiply the tensor by it anyway, so any gain is worth it. Returns the row for calibration.json.
    """
    decision, factor = choose_smoothing(skip.group, 1.0, weight_share, skip.error)
    if decision["alpha"] is not None:
        apply_smoothing(skip.group, factor)
        skip.add.treat("_skip_factor", factor.clone())
    return decision
