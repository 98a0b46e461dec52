"""Attention points for TensorRT: INT8 attention fuses with all four operands and within limits, or not at all.

One that does not fuse costs more kernels and bytes than FP16 (docs/tensorrt.md), so its points are left out before
anything is calibrated.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from qdq.inject import decided
from qdq.inject.families import PROJECTIONS
from qdq.inject.placement import Point
from qdq.inject.spec import MATMUL_OPERANDS, QuantSpec
from qdq.placing.units import kind_of

OPEN = ("auto", "fused")  # placements that take what the target can do; all others name their points
PARTLY = "TensorRT fuses attention in INT8 only with all of q, k, a and v quantized, and this placement has {} alone"
KEPT = "the points stay as {} names them, and such an attention does not fuse at all; --placement auto leaves them out"


def fitting(
    model: PreTrainedModel, spec: QuantSpec, limits: Callable[..., Sequence[str]]
) -> tuple[QuantSpec, list[str]]:
    """`spec` without the attention points of an injected `model` that TensorRT cannot fuse, and a line for each why.

    `limits(head_size, heads=)`: sentences on what INT8 fused attention exceeds; empty where it can fuse. Points that
    `enable_layers` matches stay whatever the target can do, and so do complete ones that a placement names.
    """
    # The points of each attention.
    attentions: dict[str, list[Point]] = {}
    for point in decided(model, spec).points:
        if point.kind == "matmul":
            attentions.setdefault(point.name.rpartition(".")[0], []).append(point)
    # Those that cannot fuse: left out, or kept because somebody named them; said in either case.
    declined: dict[str, str] = {}
    said: Counter[str] = Counter()
    for path, points in attentions.items():
        placed = [point for point in points if point.placed]
        if not placed:
            continue
        owner = model.get_submodule(path)
        size: int | None = getattr(owner, "attention_head_size", None)
        problems = limits(size, heads=_width(owner) // size if size else None)
        reason, kept = _reason(placed, spec, problems)
        forced = [point for point in placed if spec.enable_layers and re.search(spec.enable_layers, point.name)]
        if reason and not kept and not forced:
            declined |= dict.fromkeys((point.name for point in placed), reason)
        if reason:
            said[f"{reason}; {KEPT.format(spec.placement)}" if kept or forced else reason] += 1
    lines = [f"{count} of {len(attentions)} attentions cannot be INT8: {reason}" for reason, count in said.items()]
    return replace(spec, declined=(*spec.declined, *declined.items())), lines


def _width(attention: nn.Module) -> int:
    """Channels of all heads: outputs of the query projection, by the name that its family has for it."""
    found: list[nn.Linear] = [getattr(attention, names[0]) for names in PROJECTIONS if hasattr(attention, names[0])]
    return found[0].out_features


def _reason(placed: Sequence[Point], spec: QuantSpec, problems: Sequence[str]) -> tuple[str, bool]:
    """Reason why an attention with these points cannot run in INT8 ("" when it can), and whether they stay."""
    if len(placed) < len(MATMUL_OPERANDS):
        there = " and ".join(kind_of(point.name).removeprefix("matmul ") for point in placed)
        return PARTLY.format(there), False
    return "; ".join(problems), spec.placement not in OPEN
