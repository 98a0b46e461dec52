"""Arithmetic of a quantized linear on sampled rows, by which every treatment is chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from qdq.inject.scale import scale_of

Rows = Tensor  # [n, in] float32
MEAN_ROWS = 128  # summed in float32 before their sum is added to others in float64


def fake_quantize(x: Tensor, amax: Tensor | float, bits: int = 8) -> Tensor:
    """``clamp(round(x / scale)) * scale`` as the quantizer computes it."""
    scale = scale_of(torch.as_tensor(amax), bits)
    high = 2 ** (bits - 1) - 1
    return (x / scale).round_().clamp_(-high - 1, high).mul_(scale)


def column_means(rows: Rows) -> Tensor:
    """Mean of every column, [C] float64, without a copy of `rows` in that type."""
    parts = torch.stack([part.sum(0) for part in torch.split(rows, MEAN_ROWS)])
    return parts.double().sum(0) / len(rows)


def spread(rows: Tensor, count: int) -> Tensor:
    """At most `count` evenly spaced rows."""
    return rows[:: max(1, -(-len(rows) // count))]


def normalized(x: Tensor) -> Tensor:
    """LayerNorm without its affine part, over the last dimension."""
    return torch.nn.functional.layer_norm(x, x.shape[-1:])


def mean_square(x: Tensor) -> float:
    """Mean of squares of [n, C]."""
    return float(x.square().mean(1).double().mean())
