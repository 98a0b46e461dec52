"""Scales of INT8 codes from amax, held to what FP16 can represent."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_NORMAL_FP16 = 2.0**-14
SMALLEST_FP16 = 2.0**-24
LARGEST_FP16 = 65504.0


def scale_of(amax: Tensor, bits: int) -> Tensor:
    """Scale of symmetric `bits`-wide codes for `amax`, float32, rounded to an FP16-representable value.

    An all-zero channel gets 2**-14 (the smallest normal FP16) because a scale must be positive. Below that FP16 is
    subnormal and coarse, so the scale is rounded up there: nothing is clipped that amax covers.
    """
    ideal = amax.detach().to(torch.float32) / (2 ** (bits - 1) - 1)
    nearest = ideal.clamp(max=LARGEST_FP16).half().float()
    upward = (ideal / SMALLEST_FP16).ceil().clamp(min=1) * SMALLEST_FP16
    scale = torch.where(ideal < SMALLEST_NORMAL_FP16, upward, nearest)
    return torch.where(ideal == 0, torch.full_like(scale, SMALLEST_NORMAL_FP16), scale)
