"""Ranges of treated activations without a second pass over the data, where the first one has seen all that is needed.

Treatments multiply channels. The first pass keeps the largest magnitude of each channel of a linear's input and output,
so the largest magnitude of the treated tensor follows from it, up to float rounding. Only `max` can be answered so, and
only for inputs of linears and for queries and keys; residual operands and values, whose treatments do more, cannot.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from qdq.calibrate.algorithms import Algorithm
from qdq.calibrate.calibrate import Collected
from qdq.calibrate.calibrators import HistogramCalibrator
from qdq.calibrate.rebatch import MicroBatches
from qdq.calibrate.treatments.attentions import attentions
from qdq.calibrate.treatments.observe import Observed
from qdq.inject import quantizers
from qdq.inject.quantizer import QuantLinear, TensorQuantizer


def maxima_of_treated(
    module: nn.Module, observed: Observed, batches: MicroBatches, algorithms: Sequence[Algorithm]
) -> Collected | None:
    """The statistics that `collect` would measure on the treated `module`; None where it must."""
    found = _maxima(module, observed)
    wanted = {name for name, point in quantizers(module).items() if point.layout != "weight"}
    if any(algorithm.name != "max" for algorithm in algorithms) or not wanted <= found.keys():
        return None
    points = {}
    for name in sorted(wanted):
        points[name] = HistogramCalibrator(algorithms[0])
        points[name].maximum.take(found[name])
    masks = [batch["attention_mask"] for batch in batches.feeds]
    return Collected(points, sum(map(len, masks)), sum(int(mask.sum()) for mask in masks))


def _maxima(module: nn.Module, observed: Observed) -> dict[str, float]:
    """Point -> largest magnitude now: of inputs of observed linears, and of queries and keys."""
    found: dict[str, float] = {}
    names: dict[int, str] = {}
    for group in observed.groups:
        for name, linear in group.linears.items():
            names[id(linear)] = name
            if linear._input_quantizer is not None:
                found[linear._input_quantizer.point] = float(group.seen.largest.max())
    parts = dict(module.named_modules())
    for path, (query, key, _) in attentions(module):
        for operand, linear in (("q", query), ("k", key)):
            point = getattr(parts[path], f"matmul_{operand}_input_quantizer", None)
            if isinstance(point, TensorQuantizer) and id(linear) in names:
                found[point.point] = float(_scaled(observed.outputs[names[id(linear)]], linear).max())
    return found


def _scaled(outputs: Tensor, linear: QuantLinear) -> Tensor:
    """Largest magnitude of every output, [out], with the rows as they are scaled now."""
    return outputs if linear._row_scale is None else outputs * linear._row_scale
