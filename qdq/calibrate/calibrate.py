"""Stage 3, calibrate: an injected module and text batches in, an amax on every quantizer and the table out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdq.base.types import Progress
from qdq.calibrate import ranks
from qdq.calibrate.algorithms import DEFAULT_MOVING_RATE, DEFAULT_PERCENTILE, PER_BATCH, Algorithm
from qdq.calibrate.batch_maxima import BatchMaxima
from qdq.calibrate.calibrators import HistogramCalibrator, TensorMemo, amax_of
from qdq.calibrate.rebatch import WINDOW, MicroBatches
from qdq.calibrate.table import CalibrationTable
from qdq.errors import CalibrationError
from qdq.inject import quantizers
from qdq.inject.embedding import QuantEmbedding
from qdq.inject.families import PROJECTIONS, Family, family_of
from qdq.inject.quantizer import QuantLinear, TensorQuantizer, weight_amax
from qdq.inject.spec import QuantSpec


@dataclass(frozen=True)
class Collected:
    """Statistics of one floating-point pass: a calibrator per activation point, samples run, positions counted."""

    points: Mapping[str, HistogramCalibrator]
    samples: int
    tokens: int


def default_percentile(spec: QuantSpec) -> float:
    """99.99 (QDQBERT's recipe) when residual adds are quantized, else 99.999.

    Residual streams have outliers hundreds of times their bulk, which must be clipped; linear inputs have few, and
    clipping those costs more than the coarser scale: mean cosine to FP32 on all-MiniLM-L6-v2, placement linear+qk,
    is 0.943 at 99.99, 0.983 at 99.999 and 0.982 without clipping.
    """
    return DEFAULT_PERCENTILE if spec.residual else 99.999


def calibrate(
    module: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    spec: QuantSpec,
    algorithm: Algorithm,
    progress: Progress | None = None,
) -> CalibrationTable:
    """Run `batches` in floating point, choose an amax for every activation point and freeze every weight amax.

    Args:
        module: injected, holding a transformers model; called as ``module(**batch)``.
        batches: int64 [B, S] (or [B, N, S]) tensors by input name; "attention_mask" marks what counts. Not run when
            only weights and embedding tables are placed, which need no data.
        spec: fuse_qkv, clip_gelu and recalibrate_weights are applied here.
        algorithm: chooses the amax of every activation point.
        progress: called with (done, total) batches.

    Statistics are maxima and integer counts, so the table does not depend on how texts are grouped into batches
    beyond the float rounding of the matrix multiplications themselves; `qdq.calibrate.rebatch` removes that too.
    Raises CalibrationError naming the points that saw no data, NaN or infinity, or only zeros.
    """
    freeze_weights(module, spec.recalibrate_weights)  # first: a damaged weight would make every later point NaN
    collected = collect(module, batches, [algorithm], progress)
    return settle(module, spec, collected, algorithm)


def collect(
    module: nn.Module,
    batches: Sequence[Mapping[str, Tensor]] | MicroBatches,
    algorithms: Sequence[Algorithm],
    progress: Progress | None = None,
) -> Collected:
    """One floating-point pass over `batches`, from which every one of `algorithms` can be settled afterwards.

    The cost is the same for any number of algorithms. `MicroBatches` says which samples make a batch of the per-batch
    algorithms; in a plain sequence every element is one. Under a process group every process runs a share of the
    forwards and returns the statistics of all; the per-batch algorithms, which need the order, run all on each.
    """
    points = quantizers(module)
    plan = batches if isinstance(batches, MicroBatches) else MicroBatches.as_given(batches)
    rates = [algorithm.moving_rate for algorithm in algorithms if algorithm.name in PER_BATCH]
    if not rates:
        plan = ranks.share(plan)
    memo = TensorMemo()
    calibrators: dict[str, HistogramCalibrator] = {}
    for name, point in points.items():
        point.disable_quant()
        if point.layout != "weight":
            kept = BatchMaxima(max(filter(None, rates), default=DEFAULT_MOVING_RATE), plan.batch_size)
            calibrators[name] = HistogramCalibrator(algorithms[0], memo, kept if rates else None)
            point.calibrator = calibrators[name]
            point.enable_calib()
    # The pass itself; with weights alone there is nothing to run
    samples = tokens = 0
    try:
        with torch.no_grad():
            for done, (batch, rows) in enumerate(plan if calibrators else (), start=1):
                mask = batch["attention_mask"].bool().flatten(0, -2)
                for point in points.values():
                    point.token_mask = mask
                _announce(calibrators, rows, len(mask) // len(batch["attention_mask"]))
                module(**batch)
                memo.clear()
                samples += batch["attention_mask"].shape[0]
                tokens += int(mask.sum())
                if progress:
                    progress(done, len(plan))
    finally:
        for point in points.values():
            point.token_mask = None
            point.disable_calib()
    if not rates:
        calibrators = ranks.merged(calibrators)
        samples, tokens = ranks.total(samples, tokens)
    return Collected(calibrators, samples, tokens)


def _announce(calibrators: Mapping[str, HistogramCalibrator], rows: Sequence[int] | None, choices: int) -> None:
    """Tell the per-batch statistics which samples follow; those of earlier windows are complete by then."""
    for calibrator in calibrators.values():
        if calibrator.batches is not None:
            calibrator.batches.rows = None if rows is None else [row for row in rows for _ in range(choices)]
            if rows is not None:
                calibrator.batches.close(before=min(rows) // WINDOW * WINDOW)


def settle(module: nn.Module, spec: QuantSpec, collected: Collected, algorithm: Algorithm) -> CalibrationTable:
    """Freeze the amax of every activation point by `algorithm`, apply the spec's switches, enable every quantizer."""
    points = quantizers(module)
    for name, amax in amax_of(collected.points, algorithm).items():
        points[name].set_amax(torch.tensor(amax))
    apply_switches(module, spec)
    for point in points.values():
        point.enable_quant()
    return summarise(module, algorithm.name, algorithm.percentile, collected.samples, collected.tokens)


def apply_switches(module: nn.Module, spec: QuantSpec) -> None:
    """Apply the spec's clip_gelu and fuse_qkv to the ranges that are set now."""
    if spec.clip_gelu is not None:
        clip_gelu(module, _family(module), spec.clip_gelu)
    if spec.fuse_qkv:
        _fuse_qkv(module, per_tensor_weights=not spec.per_channel_weights)


def freeze_weights(module: nn.Module, recalibrate: bool = True) -> None:
    """Set every weight amax to the largest magnitude per channel; keep those that are there unless `recalibrate`.

    Raises CalibrationError naming a weight that holds NaN or infinity.
    """
    for owner in module.modules():
        if isinstance(owner, QuantLinear | QuantEmbedding) and owner._weight_quantizer is not None:
            point = owner._weight_quantizer
            if recalibrate or point.amax is None:
                amax = weight_amax(owner.effective_weight, point.axis)
                if not bool(torch.isfinite(amax).all()):
                    raise CalibrationError(
                        f"{point.point}: the weight holds NaN or infinity; copy the checkpoint again"
                    )
                point.set_amax(amax)


def _family(module: nn.Module) -> Family:
    """The family of the transformers model inside `module`."""
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            return family_of(part.config.model_type)
    raise CalibrationError("clip_gelu: the module holds no transformers model to find GELU in; leave clip_gelu out")


def clip_gelu(model: nn.Module, family: Family, bound: float) -> int:
    """Clamp the amax behind every GELU to `bound` (QDQBERT's --clip-gelu); returns how many points changed."""
    changed = 0
    for name, point in quantizers(model).items():
        amax = point.amax
        behind_gelu = re.search(rf"{family.gelu_output}\.input_quantizer$", name)
        if behind_gelu and amax is not None and float(amax) > bound:
            point.set_amax(torch.tensor(bound))
            changed += 1
    return changed


def _fuse_qkv(module: nn.Module, per_tensor_weights: bool) -> None:
    """q, k and v matmul operands share their largest amax, and so do per-tensor weights (QDQBERT's --fuse-qkv)."""
    for owner in module.modules():
        operands = [getattr(owner, f"matmul_{operand}_input_quantizer", None) for operand in "qkv"]
        _share([operand for operand in operands if isinstance(operand, TensorQuantizer)])
        if per_tensor_weights and hasattr(owner, "matmul_q_input_quantizer"):
            linears = [getattr(owner, name, None) for names in PROJECTIONS for name in names]
            weights = [child._weight_quantizer for child in linears if isinstance(child, QuantLinear)]
            _share([weight for weight in weights if weight is not None])


def _share(points: list[TensorQuantizer]) -> None:
    if points:
        largest = torch.stack([point.amax for point in points]).amax()
        for point in points:
            point.set_amax(largest)


def summarise(
    module: nn.Module, algorithm: str, percentile: float | None, samples: int, tokens: int
) -> CalibrationTable:
    """Return the table of the ranges that are frozen on `module` now."""
    activations: dict[str, float] = {}
    weights: dict[str, tuple[float, ...]] = {}
    for name, point in quantizers(module).items():
        if point.amax is None:
            raise CalibrationError(f"{name}: has no amax; calibrate before summarising")
        if point.layout == "weight":
            weights[name] = tuple(point.amax.flatten().tolist())
        else:
            activations[name] = float(point.amax)
    zero = {name: amax.count(0.0) for name, amax in weights.items() if 0.0 in amax}
    return CalibrationTable(activations, weights, zero, algorithm, percentile, samples, tokens)
