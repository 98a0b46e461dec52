"""Thresholds: counts of magnitudes of many points in, one amax per point out, every algorithm vectorized.

All algorithms read the same counts (`qdq.calibrate.calibrators`): one per finite FP16 magnitude, so the distribution
of ``|x|`` rounded to FP16 is known exactly, for any batches. Where an algorithm needs the error a scale would
make, that error is the deployed one, ``clamp(round(x / scale), -127, 127) * scale`` with the scale rounded to FP16, and
is exact up to float64 rounding: between two code boundaries the error is a polynomial in x, so prefix sums of 1, |x|
and |x|**2 give it without visiting the elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qdq.errors import CalibrationError
from qdq.inject.scale import LARGEST_FP16, scale_of

FINITE_FP16_MAGNITUDES = 31744  # bit patterns 0x0000..0x7BFF: 0 up to 65504 in increasing order
LARGEST_CODE = 127

# Candidates of mse and emd: the largest magnitude times 2**(-i / 24) for i in 0..239, that is down to 1/1000 of it in
# steps of 3 %. Paddle searches 0.3 to 1.0 in steps of 0.02 and pytorch-quantization from 1/16 on: neither reaches the
# optimum of a residual stream whose outliers are 300 times its bulk.
CANDIDATES_PER_OCTAVE, CANDIDATES = 24, 240
MOST_BINS = 2048  # of one FP16 step at the largest magnitude
ENTROPY_LEVELS = 128  # quantized magnitudes of 8 bits, as TensorRT and pytorch-quantization count them
ENTROPY_CANDIDATES = 240  # of up to 2048 possible thresholds, evenly spread; stride 1 costs eight times as much
POINTS_AT_ONCE = 16  # bounds memory to about 40 MB for any model


@dataclass(frozen=True)
class Counts:
    """Statistics of P points: `counts` int64 [P, 31744] per FP16 magnitude, `largest` float64 [P] the true maximum."""

    counts: Tensor
    largest: Tensor

    def __len__(self) -> int:
        return len(self.largest)


def choose_thresholds(algorithm: str, counts: Counts, percentile: float) -> Tensor:
    """The amax of every point, float64 [P]. `algorithm`: percentile, entropy, mse or emd.

    Every point must have seen something larger than zero. A threshold is never above the largest magnitude.
    """
    found = []
    for start in range(0, len(counts), POINTS_AT_ONCE):
        part = slice(start, start + POINTS_AT_ONCE)
        found.append(_choose(algorithm, Counts(counts.counts[part], counts.largest[part]), percentile))
    return torch.cat(found)


def _choose(algorithm: str, counts: Counts, percentile: float) -> Tensor:
    if algorithm == "percentile":
        value = percentile_of(counts, percentile)
    elif algorithm == "entropy":
        value = entropy_of(counts)
    elif algorithm == "mse":
        value = least_error(counts, power=2)
    elif algorithm == "emd":
        value = least_error(counts, power=1)
    else:
        raise CalibrationError(f"{algorithm}: does not choose a threshold from magnitudes")
    # A sparse tensor can have its percentile at zero; its largest magnitude is then the only scale there is.
    return torch.where(value > 0, torch.minimum(value, counts.largest), counts.largest)


def percentile_of(counts: Counts, percentile: float) -> Tensor:
    """The smallest magnitude that `percentile` per cent of all elements do not exceed (QDQBERT's calibrator).

    Equals ``numpy.quantile(|x| rounded to FP16, method="inverted_cdf")`` exactly. pytorch-quantization reads the same
    from 2048 linear bins that stretch with the data; Paddle's `hist` is this at 99.999.
    """
    cumulative = counts.counts.cumsum(1)
    total = cumulative[:, -1].tolist()
    # Python's integers and floats: float32 would lose ranks beyond 2**24.
    ranks = [min(n, max(1, math.ceil(n * (percentile / 100)))) for n in total]
    index = torch.searchsorted(cumulative, torch.tensor(ranks).unsqueeze(1)).squeeze(1)
    return magnitudes()[index]


def entropy_of(counts: Counts, candidates: int = ENTROPY_CANDIDATES) -> Tensor:
    """The threshold whose 128 quantized magnitudes lose the least information (smallest Kullback-Leibler divergence).

    Source: S. Migacz, "8-bit inference with TensorRT" (GTC 2017), as pytorch-quantization's `entropy` computes it: the
    reference P is the histogram up to the threshold with all larger elements in its last bin; Q has the same elements
    without the clipped ones, spread within each of 128 groups over the bins that are not empty. The bins are as wide
    as FP16's step at the largest magnitude, which gives 1024 to 2048 of them, and their edges are FP16 magnitudes, so
    no element falls between two. As there, the first bin is given the count of the second: exact zeros (ReLU, padding)
    would otherwise decide.
    """
    histograms, widths, bins = linear_histograms(counts)
    return widths * entropy_bins(histograms, bins, candidates)


def linear_histograms(counts: Counts) -> tuple[Tensor, Tensor, Tensor]:
    """The counts of P points in up to 2048 equally wide bins: float64 [P, 2048], their widths [P], how many [P]."""
    top = counts.largest.clamp(max=LARGEST_FP16)
    exponent = torch.frexp(top).exponent.clamp(min=-13)  # top <= 2**exponent; below 2**-14 FP16 has one step for all
    widths = torch.ldexp(torch.ones_like(top), exponent - 11)
    bins = ((top / widths).long() + 1).clamp(min=ENTROPY_LEVELS)
    index = torch.minimum((magnitudes() / widths[:, None]).long(), bins[:, None] - 1)
    histograms = torch.zeros(len(counts), MOST_BINS, dtype=torch.float64)
    return histograms.scatter_add_(1, index, counts.counts.double()), widths, bins


def entropy_bins(histograms: Tensor, bins: Tensor, candidates: int) -> Tensor:
    """Number of the `bins` [P] of each histogram [P, B] to keep, int64 [P]; the last of equally good ones."""
    stops = candidate_stops(bins, candidates)
    best = stops.shape[1] - 1 - divergences(histograms, stops).flip(1).argmin(1, keepdim=True)
    return stops.gather(1, best).squeeze(1)


def candidate_stops(bins: Tensor, candidates: int) -> Tensor:
    """[P, candidates] numbers of bins to keep, evenly spread from 128 to all of `bins` [P]; some repeat when few."""
    steps = torch.arange(candidates, dtype=torch.float64) / max(1, candidates - 1)
    return (ENTROPY_LEVELS + (bins[:, None] - ENTROPY_LEVELS) * steps).round().long()


def divergences(histograms: Tensor, stops: Tensor) -> Tensor:
    """Kullback-Leibler divergence of keeping the first `stops` [P, C] bins of `histograms` [P, B]: float64 [P, C].

    Sums over bins are differences of prefix sums at the borders of the 128 groups, so nothing is visited twice.
    """
    histograms = histograms.clone()
    histograms[:, 0] = histograms[:, 1]
    total = histograms.sum(1, keepdim=True)
    sums, filled, entropy = (_prefix(x) for x in (histograms, (histograms > 0).double(), _xlogx(histograms)))
    # Group borders as numpy.digitize(range(i), linspace(0, i, 129)) draws them: ceil(k * i / 128).
    edges = -(-(torch.arange(ENTROPY_LEVELS + 1) * stops[:, :, None]) // ENTROPY_LEVELS)  # [P, C, 129]
    mass, occupied = _between(sums, edges), _between(filled, edges)
    clipped, last = total - sums.gather(1, stops), histograms.gather(1, stops - 1)
    # sum p log p over the kept bins, the last one with the clipped elements; sum p log q by groups of equal q
    p_log_p = entropy.gather(1, stops) - _xlogx(last) + _xlogx(last + clipped)
    q = torch.where(occupied > 0, mass / occupied.clamp(min=1), 1.0)
    reference = mass.clone()
    reference[:, :, -1] += clipped
    found = (p_log_p - (reference * q.log()).sum(2)) / total - total.log() + (total - clipped).clamp(min=1).log()
    # An empty last bin that receives clipped elements has q = 0 where p > 0.
    return torch.where((last == 0) & (clipped > 0), torch.inf, found)


def least_error(counts: Counts, power: int) -> Tensor:
    """The threshold with the least mean ``|x - quantized(x)|**power`` among the candidates; the larger of equals.

    power 2 is `mse` (pytorch-quantization and Paddle, which both search 2048 linear bins or 36 fractions). power 1 is
    `emd`: quantization is monotone, so the cheapest transport from the distribution of x to that of quantized(x) moves
    every element to its own code, and the earth mover's distance (Wasserstein 1) is the mean absolute error. Paddle's
    `emd` is another quantity under the same name, the distance of the two means plus that of the two deviations.
    """
    thresholds = candidate_thresholds(counts.largest)
    scales = scale_for(thresholds)
    return thresholds.gather(1, quantization_error(counts, scales, power).argmin(1, keepdim=True)).squeeze(1)


def candidate_thresholds(largest: Tensor) -> Tensor:
    """[P, 240] thresholds below `largest` [P], in falling order."""
    steps = torch.arange(CANDIDATES, dtype=torch.float64) / CANDIDATES_PER_OCTAVE
    return largest.clamp(max=LARGEST_FP16)[:, None] * torch.exp2(-steps)


def quantization_error(counts: Counts, scales: Tensor, power: int) -> Tensor:
    """Total ``|x - quantized(x)|**power`` of every point under each of its `scales` [P, C], float64 [P, C]."""
    values = magnitudes()
    weights = counts.counts.double()
    sums = [_prefix(weights * values**p) for p in range(power + 1)]
    codes = torch.arange(LARGEST_CODE + 1, dtype=torch.float64)
    # Elements below (k + 1/2) * scale have a code of at most k; a tie between two codes costs the same in both.
    inner = boundary_index((codes[:-1] + 0.5) * scales[:, :, None])
    first, last = torch.zeros_like(inner[..., :1]), torch.full_like(inner[..., :1], FINITE_FP16_MAGNITUDES)
    edges = torch.cat([first, inner, last], dim=2)
    centers = codes * scales[:, :, None]
    if power == 2:
        zeroth, once, twice = (_between(prefix, edges) for prefix in sums)
        return (twice - 2 * centers * once + centers**2 * zeroth).sum(2).clamp(min=0)
    (zero_edge, zero_middle), (one_edge, one_middle) = (
        (_at(prefix, edges), _at(prefix, boundary_index(centers))) for prefix in sums
    )
    below = centers * (zero_middle - zero_edge[..., :-1]) - (one_middle - one_edge[..., :-1])
    above = (one_edge[..., 1:] - one_middle) - centers * (zero_edge[..., 1:] - zero_middle)
    return (below + above).sum(2).clamp(min=0)


def scale_for(amax: Tensor) -> Tensor:
    """The scale the quantizer will use for `amax`, float64."""
    return scale_of(amax.float(), 8).double()


def magnitudes() -> Tensor:
    """Every finite FP16 magnitude in rising order, float64 [31744]."""
    return torch.arange(FINITE_FP16_MAGNITUDES, dtype=torch.int16).view(torch.float16).double()


def boundary_index(boundaries: Tensor) -> Tensor:
    """Index of the first FP16 magnitude that is not below each boundary (31744 when all are).

    A magnitude's index is its bit pattern, so rounding gives the index: the nearest one, or the next.
    """
    nearest = boundaries.half()
    return nearest.view(torch.int16).long() + (nearest.double() < boundaries)


def _between(prefix: Tensor, edges: Tensor) -> Tensor:
    """Sums of [P, K+1] prefix sums between neighbouring `edges` [P, C, n+1]: [P, C, n]."""
    return _at(prefix, edges).diff(dim=2)


def _at(prefix: Tensor, edges: Tensor) -> Tensor:
    return prefix.gather(1, edges.flatten(1)).view(edges.shape)


def _prefix(values: Tensor) -> Tensor:
    """Exclusive prefix sums along the last dimension: one longer than `values`."""
    zero = torch.zeros_like(values[..., :1])
    return torch.cat([zero, values.cumsum(-1)], dim=-1)


def _xlogx(values: Tensor) -> Tensor:
    result: Tensor = torch.special.xlogy(values, values)
    return result
