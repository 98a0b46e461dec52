"""Distributions behind the chosen ranges, for people: magnitudes of every activation point on some of the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from qdq.calibrate.algorithms import Algorithm
from qdq.calibrate.calibrate import collect
from qdq.inject import quantizers

PER_OCTAVE = 4  # bins between a power of two and the next, of equal width
SHIFT = 8  # FP16 patterns per bin, as bits: ten of mantissa less two


def histograms(module: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Run `batches` in floating point and count magnitudes; returns the content of histograms.json.

    The `module` is calibrated and stays so; its treated activations are what is counted. ``edges`` are the lower ends
    of the bins and the upper end of the last; of a point, ``counts`` [bins] begin with the bin ``first``, ``zeros`` are
    counted apart, and ``largest`` is the largest magnitude.
    """
    collected = collect(module, batches, [Algorithm("max")])
    for point in quantizers(module).values():
        point.enable_quant()
    points = {}
    for name, seen in collected.points.items():
        zeros = int(seen.counts[0])
        bins = seen.counts.view(-1, 2**SHIFT).sum(1)
        bins[0] -= zeros
        filled = bins.nonzero().flatten()
        first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, 0)
        counts = bins[first : last + 1].tolist()
        points[name] = {"first": first, "counts": counts, "zeros": zeros, "largest": float(seen.maximum.largest)}
    return {"samples": collected.samples, "tokens": collected.tokens, "edges": _edges(), "points": points}


def _edges() -> list[float]:
    """The magnitudes where FP16's patterns have a new bin, up to 2**16."""
    from qdq.calibrate.thresholds import FINITE_FP16_MAGNITUDES

    def magnitude(pattern: int) -> float:
        exponent, mantissa = pattern >> 10, pattern & 1023
        return float(2.0 ** (max(exponent, 1) - 15) * ((exponent > 0) + mantissa / 1024))

    return [magnitude(pattern) for pattern in range(0, FINITE_FP16_MAGNITUDES + 1, 2**SHIFT)]
