"""Ranges and rounding of an ONNX file's multiplications: one pass of its tensors, then one quantization per algorithm.

Every linear of the file stands as a `QuantLinear` of its own for as long as codes and biases are chosen, so that
AdaRound, GPTQ and bias correction are those of `qdq.calibrate.treatments`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from export.quantize_file import FileLinear, FileProduct, FileQuantization, weight_of
from export.unoptimized import open_unoptimized, run
from qdq.calibrate.algorithms import Algorithm
from qdq.calibrate.calibrators import HistogramCalibrator, amax_of
from qdq.calibrate.rebatch import Batch
from qdq.calibrate.treatments.observe import ROWS, Group, Observed, Seen
from qdq.calibrate.treatments.rounding import correct_biases, round_weights
from qdq.calibrate.treatments.settings import Treatments
from qdq.compress.arguments import CompressionArguments
from qdq.errors import DataError
from qdq.inject.quantizer import QuantLinear, TensorQuantizer, weight_amax
from qdq.inject.scale import scale_of

PROBABILITIES = 1.0  # amax of softmax outputs with softmax_scale


@dataclass(frozen=True)
class FilePoints:
    """Points of a file that are quantized: its linears, and `operands` (q, k, a, v) of its attention products."""

    linears: list[FileLinear]
    products: list[FileProduct]
    operands: Collection[str]

    @property
    def placed(self) -> dict[tuple[str, int], tuple[str, str]]:
        """Product and position -> operand and the tensor that holds it."""
        return {
            (product.node, position): (operand, tensor)
            for product in self.products
            for position, (operand, tensor) in enumerate(product.operands)
            if operand in self.operands
        }

    @property
    def tensors(self) -> dict[str, str]:
        """Every activation that is quantized -> the operand it is: q, k, a, v, or "" of a linear."""
        found = dict.fromkeys((linear.activation for linear in self.linears), "")
        return {tensor: operand for operand, tensor in self.placed.values()} | found

    @property
    def left_out(self) -> str:
        """A sentence on what stays in floating point."""
        missing = [operand for operand in "qkav" if operand not in self.operands]
        floating = f"operands {', '.join(missing)} and residual adds" if missing else "residual adds"
        return f"{floating} stay in floating point"

    def as_json(self) -> dict[str, list[str]]:
        """Names of the multiplications, for the report of an engine."""
        return {
            "linears": [linear.node for linear in self.linears],
            "products": [product.node for product in self.products],
        }


@dataclass(frozen=True)
class FileStatistics:
    """Counts of every quantized tensor's magnitudes, and sampled rows of what linears read (where a treatment asks)."""

    counts: Mapping[str, HistogramCalibrator]
    rows: Mapping[str, Seen]


def observe(
    model: onnx.ModelProto, points: FilePoints, batches: Iterable[Batch], treated: Treatments, rate: float
) -> FileStatistics:
    """One pass over `batches`; padded positions do not count. `rate` is that of moving averages.

    Raises DataError naming an input that the data lack.
    """
    # The graph with every quantized tensor among its outputs
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    inputs, kinds = [value.name for value in probe.graph.input], points.tensors
    present = {value.name for value in probe.graph.output} | set(inputs)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in kinds if name not in present)
    session = open_unoptimized(probe.SerializeToString(), Path())
    # "avg" keeps what every algorithm needs
    counts = {name: HistogramCalibrator(Algorithm("avg", moving_rate=rate)) for name in kinds}
    parts: dict[str, list[Tensor]] = {name: [] for name, kind in kinds.items() if not kind and treated.rewrites}
    for batch in batches:
        mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
        for (name, kind), value in zip(kinds.items(), run(session, feeds_of(batch, inputs), list(kinds)), strict=True):
            x = torch.from_numpy(np.array(value))
            counts[name].update(x, counted(x, kind, mask))
            if name in parts:
                real = mask is not None and x.dim() == 3 and x.shape[:2] == mask.shape
                parts[name].append(x[mask] if real else x.reshape(-1, x.shape[-1]))
    return FileStatistics(counts, {name: _sampled(torch.cat(found)) for name, found in parts.items()})


def counted(x: Tensor, kind: str, mask: Tensor | None) -> Tensor | None:
    """Mask [B, S] shaped for a tensor: [B, S, C] of a linear, or [B, heads, ...] of operand `kind`; None counts all."""
    if mask is None or len(x) != len(mask):
        return None
    if not kind:
        return mask[:, :, None] if x.dim() == 3 and x.shape[1] == mask.shape[1] else None
    rows, columns = mask[:, None, :, None], mask[:, None, None, :]
    shaped = {"q": rows, "v": rows, "k": columns, "a": rows & columns}[kind]
    fits = x.dim() == 4 and all(size in (1, real) for size, real in zip(shaped.shape[2:], x.shape[2:], strict=True))
    return shaped if fits else None


def feeds_of(batch: Batch, inputs: Iterable[str]) -> dict[str, Any]:
    """The graph's inputs out of a batch. Raises DataError naming one the data lacks."""
    missing = [name for name in inputs if name not in batch]
    if missing:
        raise DataError(
            f"eval_dataset: has no column '{missing[0]}', which the graph needs (it has {', '.join(batch)})"
        )
    return {name: batch[name].numpy() for name in inputs}


def _sampled(rows: Tensor) -> Seen:
    return Seen(rows.amin(0), rows.amax(0), [rows[:: max(1, -(-len(rows) // ROWS))]])


def quantization(
    model: onnx.ModelProto, points: FilePoints, seen: FileStatistics, algorithm: Algorithm, args: CompressionArguments
) -> FileQuantization:
    """Scales by one algorithm, with the codes and shifts that `round_type` and `bias_correction` choose for them."""
    amax = amax_of(seen.counts, algorithm)
    if args.softmax_scale:
        amax |= {tensor: PROBABILITIES for tensor, kind in points.tensors.items() if kind == "a"}
    per_channel = args.weight_quantize_type == "channel_wise_abs_max"
    linears = {linear.node: _stand_in(model, linear, amax[linear.activation], per_channel) for linear in points.linears}
    # Linears that read one tensor are rounded together
    groups: dict[str, Group] = {}
    for linear in points.linears:
        if linear.activation in seen.rows:
            group = groups.setdefault(linear.activation, Group({}, seen.rows[linear.activation]))
            group.linears[linear.node] = linears[linear.node]
    observed = Observed(list(groups.values()), {}, {})
    if args.round_type != "round":
        round_weights(observed, args.round_type, args.seed)
        shared: dict[str, QuantLinear] = {}
        for linear in points.linears:  # one that several read has the codes of the first
            first = shared.setdefault(linear.weight, linears[linear.node])
            linears[linear.node].treat("_codes", first._codes)
    if args.bias_correction:
        correct_biases(observed)
    # What they chose, in the file's own layout
    scales: dict[str, Any] = {}
    codes: dict[str, Any] = {}
    shifts: dict[str, Any] = {}
    for linear in points.linears:
        stand_in = linears[linear.node]
        point = stand_in._weight_quantizer
        assert point is not None and point.amax is not None  # set when it was made
        scales.setdefault(linear.weight, scale_of(point.amax, 8).numpy())
        if stand_in._codes is not None:
            chosen = stand_in._codes.numpy()
            codes.setdefault(linear.weight, np.ascontiguousarray(chosen if linear.axis == 0 else chosen.T))
        if stand_in._bias_shift is not None:
            shifts[linear.node] = stand_in._bias_shift.numpy()
    activations = {tensor: float(scale_of(torch.tensor(value), 8)) for tensor, value in amax.items()}
    return FileQuantization(points.linears, activations, scales, set(points.placed), codes, shifts)


def _stand_in(model: onnx.ModelProto, linear: FileLinear, amax: float, per_channel: bool) -> QuantLinear:
    """A linear of the file as a module, with its ranges."""
    stored = torch.from_numpy(weight_of(model, linear).copy())
    weight = stored if linear.axis == 0 else stored.T.contiguous()
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    axis = 0 if per_channel else None
    inputs, weights = (
        TensorQuantizer(f"{linear.node}.input"),
        TensorQuantizer(f"{linear.node}.weight", 8, axis, "weight"),
    )
    inputs.set_amax(torch.tensor(amax))
    weights.set_amax(weight_amax(weight, axis))
    return QuantLinear(plain, inputs, weights)
