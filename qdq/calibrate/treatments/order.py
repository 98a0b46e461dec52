"""Post-training quantization in a fixed order: an injected module and text in, ranges and treated weights out.

observe -> center values -> equalize -> smooth -> scale residuals -> measure ranges (one pass, every algorithm) ->
settle one algorithm -> clip search -> softmax scale -> round weights -> correct biases. Everything up to the pass
leaves the floating-point function as it is, so all algorithms of a sweep share it; everything after it is done for one
algorithm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from qdq.base.types import Progress
from qdq.calibrate.algorithms import Algorithm
from qdq.calibrate.calibrate import Collected, apply_switches, collect, freeze_weights, settle
from qdq.calibrate.rebatch import MicroBatches
from qdq.calibrate.table import CalibrationTable
from qdq.calibrate.treatments.center import center_values
from qdq.calibrate.treatments.clip import choose_clips
from qdq.calibrate.treatments.equalize import context_readers, equalize
from qdq.calibrate.treatments.maxima import maxima_of_treated
from qdq.calibrate.treatments.observe import Group, Observed, observe
from qdq.calibrate.treatments.rounding import correct_biases, round_weights
from qdq.calibrate.treatments.scale_residuals import scale_residuals
from qdq.calibrate.treatments.settings import Treatments
from qdq.calibrate.treatments.share_skips import Skip, shared_skips, smooth_shared
from qdq.calibrate.treatments.smooth import COMPENSATED, apply_smoothing, choose_smoothing
from qdq.inject import quantizers
from qdq.inject.quantizer import QuantLinear, treated
from qdq.inject.spec import QuantSpec

Report = dict[str, list[dict[str, Any]]]


@dataclass
class Prepared:
    """The state that all algorithms share: the exactly treated module, its statistics, and the report so far."""

    module: nn.Module
    spec: QuantSpec
    treatments: Treatments
    collected: Collected
    observed: Observed | None
    report: Report
    shared: frozenset[str]  # residual adds whose skip shares a quantizer with linears


def prepare(
    module: nn.Module,
    batches: MicroBatches,
    spec: QuantSpec,
    algorithms: Sequence[Algorithm],
    treatments: Treatments,
    progress: Progress | None = None,
) -> Prepared:
    """Treat the injected `module` exactly, in place, and measure the ranges of every algorithm in one pass.

    Raises CalibrationError for a weight that holds NaN or infinity.
    """
    # A checkpoint that is calibrated anew starts without its earlier treatments
    earlier = clear_treatments(module)
    freeze_weights(module, spec.recalibrate_weights or earlier)  # first: a damaged weight makes every later point NaN
    report: Report = {}
    observed, skips = None, list[Skip]()
    # Exact treatments, in this order: each changes the weights and the statistics that the next one reads
    if treatments.observes:
        observed = observe(module, batches, progress, treatments.value_centering)
        if treatments.value_centering:
            report["value_centering"] = center_values(module, observed)
        if treatments.equalization:
            report["equalization"] = equalize(module, observed)
        skips = shared_skips(module, observed) if spec.shared_skip else []
        if treatments.smoothing:
            share = 1.0 if treatments.round_type == "round" else COMPENSATED
            kept = context_readers(module, observed)
            together = {skip.group.name: skip for skip in skips}
            report["smoothing"] = [
                smooth_shared(together[group.name], share) if group.name in together else _smooth(group, share)
                for group in observed.groups
                if group.name not in kept
            ]
        if treatments.residual_scaling:
            report["residual_scaling"] = scale_residuals(module, observed, {skip.path for skip in skips})
    # Ranges, of the treated weights and of the activations they produce
    if treatments.moves_ranges:
        freeze_weights(module)
    collected = None if observed is None else maxima_of_treated(module, observed, batches, algorithms)
    if collected is None:
        collected = collect(module, batches, algorithms, progress)
    return Prepared(module, spec, treatments, collected, observed, report, frozenset(skip.path for skip in skips))


def _smooth(group: Group, weight_share: float) -> dict[str, Any]:
    decision, factor = choose_smoothing(group, weight_share=weight_share)
    if decision["alpha"] is not None:
        apply_smoothing(group, factor)
    return decision


def finish(
    prepared: Prepared, algorithm: Algorithm, seed: int = 42, progress: Progress | None = None
) -> tuple[CalibrationTable, Report]:
    """Settle one algorithm on the prepared module and treat its weights; quantizers are enabled afterwards.

    A call with another algorithm replaces the result of the earlier one. Raises CalibrationError naming the points that
    saw no data, NaN or infinity, or only zeros.
    """
    module, treatments, observed = prepared.module, prepared.treatments, prepared.observed
    # Ranges of the activations: the algorithm's, then the residual operands' and softmax's own
    drop_rounding(module)
    report = dict(prepared.report)
    table = settle(module, prepared.spec, prepared.collected, algorithm)
    if observed is not None and treatments.clip_search:
        maxima = {name: point.maximum.largest for name, point in prepared.collected.points.items()}
        report["clip_search"] = choose_clips(module, observed, maxima, prepared.shared)
        apply_switches(module, prepared.spec)
    if treatments.softmax_scale:
        report["softmax_scale"] = _softmax_scale(module)
    # Weights and biases, which depend on the ranges of what they are multiplied with
    if observed is not None and treatments.round_type != "round":
        report["rounding"] = round_weights(observed, treatments.round_type, seed, progress, treatments.adaround)
    if observed is not None and treatments.bias_correction:
        report["bias_correction"] = correct_biases(observed)
    # The table of the ranges as they are now
    points = quantizers(module)
    activations = {name: float(points[name].amax) for name in table.activations}
    name = "search" if "clip_search" in report else table.algorithm
    return replace(table, activations=activations, algorithm=name), report


def _softmax_scale(module: nn.Module) -> list[dict[str, Any]]:
    rows = []
    for name, point in quantizers(module).items():
        if point.layout == "scores":
            point.set_amax(torch.tensor(1.0))
            rows.append({"point": name, "amax": 1.0})
    return rows


def clear_treatments(module: nn.Module) -> bool:
    """Remove every treatment; returns whether there was any."""
    found = bool(treatment_tensors(module))
    for _, part in treated(module):
        for name in part.TREATMENTS:
            part.treat(name, None)
    return found


def drop_rounding(module: nn.Module) -> None:
    """Forget codes and bias shifts, which belong to weights that are about to be trained."""
    for part in module.modules():
        if isinstance(part, QuantLinear):
            part.treat("_codes", None)
            part.treat("_bias_shift", None)


def treatment_tensors(module: nn.Module) -> Mapping[str, torch.Tensor]:
    """Every treatment tensor by its name in a state dict."""
    return {
        f"{path}.{name}": getattr(part, name)
        for path, part in treated(module)
        for name in part.TREATMENTS
        if getattr(part, name) is not None
    }
