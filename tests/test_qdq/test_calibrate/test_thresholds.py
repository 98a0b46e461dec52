"""Every calibration algorithm against an independent statement: brute force, scipy, pytorch-quantization's numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_quantization.calib.histogram import _compute_amax_entropy
from scipy.stats import wasserstein_distance

from qdq.calibrate.algorithms import ALGORITHMS, ALIASES, Algorithm, algorithm_named
from qdq.calibrate.batch_maxima import BatchMaxima
from qdq.calibrate.calibrators import HistogramCalibrator, amax_of
from qdq.calibrate.thresholds import (
    ENTROPY_CANDIDATES,
    Counts,
    candidate_thresholds,
    divergences,
    entropy_bins,
    linear_histograms,
    quantization_error,
    scale_for,
)
from qdq.errors import CalibrationError, ConfigError

DISTRIBUTIONS = ("normal", "laplace", "outliers", "relu", "tiny")


def sample(name: str, seed: int = 0, size: int = 20_000) -> np.ndarray:
    """Activations of one point, already FP16-representable so that counting loses nothing."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(size)
    if name == "laplace":
        values = rng.laplace(size=size)
    if name == "outliers":  # a residual stream: bulk near 1, a few elements near 300
        values[:: size // 20] *= 150
    if name == "relu":
        values = np.maximum(values, 0)
    if name == "tiny":
        values *= 1e-5
    return values.astype(np.float16).astype(np.float32)


def counted(*tensors: np.ndarray) -> Counts:
    calibrators = []
    for values in tensors:
        calibrator = HistogramCalibrator(Algorithm("mse"))
        calibrator.update(torch.from_numpy(values))
        calibrators.append(calibrator)
    largest = torch.tensor([c.maximum.largest for c in calibrators], dtype=torch.float64)
    return Counts(torch.stack([c.counts for c in calibrators]), largest)


def quantized(values: np.ndarray, scale: float) -> np.ndarray:
    return np.clip(np.round(values / scale), -127, 127) * scale


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_error_of_a_scale_is_that_of_quantizing_every_element(name: str, power: int) -> None:
    values = sample(name).astype(np.float64)
    scales = scale_for(candidate_thresholds(counted(sample(name)).largest))[:, ::30]
    found = quantization_error(counted(sample(name)), scales, power)[0].numpy()
    expected = [float((np.abs(values - quantized(values, s)) ** power).sum()) for s in scales[0].tolist()]
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("algorithm", "power"), [("mse", 2), ("emd", 1)])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mse_and_emd_are_no_worse_than_any_threshold(name: str, algorithm: str, power: int) -> None:
    """Brute force over 400 thresholds that are not the search's own candidates."""
    values = sample(name).astype(np.float64)
    calibrator = HistogramCalibrator(Algorithm(algorithm))
    calibrator.update(torch.from_numpy(sample(name)))
    amax = calibrator.amax("p")

    def error(threshold: float) -> float:
        scale = float(scale_for(torch.tensor(threshold)))
        return float((np.abs(values - quantized(values, scale)) ** power).mean())

    best = min(error(t) for t in np.geomspace(np.abs(values).max() / 900, np.abs(values).max(), 400))
    assert error(amax) <= best * 1.02  # candidates are 3 % apart


def test_emd_is_scipys_earth_movers_distance() -> None:
    values = sample("outliers", size=3000).astype(np.float64)
    scales = torch.tensor([[0.5, 0.05, 0.02]], dtype=torch.float64)
    found = quantization_error(counted(sample("outliers", size=3000)), scales, power=1)[0] / 3000
    expected = [wasserstein_distance(values, quantized(values, scale)) for scale in scales[0].tolist()]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["normal", "laplace", "outliers", "relu"])
def test_entropy_is_pytorch_quantizations(name: str) -> None:
    """The reference tool's own function on the same histogram, at every threshold it tries."""
    counts = counted(sample(name, size=4000))
    (histogram,), (width,), _ = (
        tensor.tolist() if tensor.dim() == 1 else tensor for tensor in linear_histograms(counts)
    )
    histogram = histogram[:600]  # the reference loops in Python; a prefix of a histogram is a histogram
    edges = np.arange(601) * width
    expected = float(_compute_amax_entropy(histogram.numpy().astype(np.int64), edges, 8, False))
    kept = int(entropy_bins(histogram[None], torch.tensor([600]), candidates=10_000))
    assert kept * width == pytest.approx(expected)


@pytest.mark.parametrize("name", ["normal", "laplace", "outliers"])
def test_entropy_tries_enough_thresholds(name: str) -> None:
    """The default tries an even selection; the best of all loses hardly less information."""
    counts = counted(sample(name, size=200_000))
    histograms, _, bins = linear_histograms(counts)
    best = float(divergences(histograms, torch.arange(128, int(bins) + 1)[None]).min())
    chosen = divergences(histograms, entropy_bins(histograms, bins, ENTROPY_CANDIDATES)[:, None])
    assert float(chosen) <= 1.05 * best + 1e-6


def test_the_linear_histogram_holds_every_element_in_its_own_bin() -> None:
    for top in (1.0, 1.4990234375, 1.9990234375, 300.25, 65504.0, 2.0**-24, 3e-6):
        values = np.linspace(0, top, 5000).astype(np.float16).astype(np.float32)
        counts = counted(values)
        (histogram,), (width,), (bins,) = linear_histograms(counts)
        histogram, width = histogram[: int(bins)], float(width)
        expected = np.bincount((values.astype(np.float64) / width).astype(np.int64), minlength=len(histogram))
        assert histogram.tolist() == expected.tolist()


def test_points_do_not_influence_each_other() -> None:
    calibrators = {}
    for index, name in enumerate(DISTRIBUTIONS * 7):  # more than are searched at once
        calibrators[f"{name}{index}"] = HistogramCalibrator(Algorithm("mse"))
        calibrators[f"{name}{index}"].update(torch.from_numpy(sample(name, index, 500)))
    for algorithm in ("max", "percentile", "entropy", "mse", "emd"):
        together = amax_of(calibrators, algorithm_named(algorithm))
        assert together == {n: amax_of({n: c}, algorithm_named(algorithm))[n] for n, c in calibrators.items()}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_merging_gives_what_one_calibrator_would(algorithm: str) -> None:
    chosen = algorithm_named(algorithm)
    whole, first, second = (HistogramCalibrator(chosen) for _ in range(3))
    for seed in range(6):
        values = torch.from_numpy(sample("outliers", seed, 300))
        whole.update(values)
        (first if seed < 4 else second).update(values)
    first.merge(second)
    assert first.amax("p") == pytest.approx(whole.amax("p"), rel=1e-12 if algorithm == "moving_average" else 0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_algorithm_exceeds_the_largest_magnitude(algorithm: str) -> None:
    for name in DISTRIBUTIONS:
        calibrator = HistogramCalibrator(algorithm_named(algorithm))
        calibrator.update(torch.from_numpy(sample(name)))
        assert 0 < calibrator.amax("p") <= float(np.abs(sample(name)).max())


# The per-batch algorithms


MAXIMA = st.lists(st.floats(2**-10, 300, width=32), min_size=1, max_size=30)


@given(MAXIMA, st.integers(1, 7))
def test_average_is_the_mean_over_batches_of_the_mean_over_samples(maxima: list[float], size: int) -> None:
    batches = BatchMaxima(0.9, size)
    batches.rows = range(len(maxima))
    batches.add(maxima)
    groups = [maxima[i : i + size] for i in range(0, len(maxima), size)]
    means = [sum(map(Fraction, group)) / len(group) for group in groups]
    assert batches.average() == float(sum(means) / len(means))


@given(MAXIMA, st.integers(1, 7), st.floats(0.01, 0.99))
def test_moving_average_is_the_weighted_mean_with_falling_weights(maxima: list[float], size: int, rate: float) -> None:
    batches = BatchMaxima(rate, size)
    batches.rows = range(len(maxima))
    batches.add(maxima)
    largest = [max(maxima[i : i + size]) for i in range(0, len(maxima), size)]
    weights = rate ** np.arange(len(largest))[::-1]
    assert batches.moving_average() == pytest.approx(float(np.average(largest, weights=weights)))


@given(MAXIMA, st.integers(1, 7), st.integers(1, 5), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_samples_may_arrive_in_any_order(maxima: list[float], size: int, forward: int, random: object) -> None:
    """Sorted by length, a few at a time: the batches are still those of the user."""
    plain, shuffled = BatchMaxima(0.8, size), BatchMaxima(0.8, size)
    plain.rows = range(len(maxima))
    plain.add(maxima)
    order = list(range(len(maxima)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for start in range(0, len(order), forward):
        shuffled.rows = order[start : start + forward]
        shuffled.add([maxima[row] for row in shuffled.rows])
    assert (shuffled.average(), shuffled.moving_average()) == (plain.average(), plain.moving_average())


def test_complete_batches_are_forgotten() -> None:
    """Memory does not grow with the samples: only batches that reach into the next window stay open."""
    batches = BatchMaxima(0.9, 3)
    for start in range(0, 1024, 8):
        batches.rows = range(start, start + 8)
        batches.close(before=start // 256 * 256)
        batches.add([1.0] * 8)
        assert len(batches._open) <= 256 // 3 + 2


# Names


def test_every_name_of_the_compression_api_is_accepted() -> None:
    for name in ("KL", "abs_max", "min_max", "avg", "hist", "mse", "emd", "moving_average_abs_max", "kl"):
        assert algorithm_named(name).name in ALGORITHMS
    assert algorithm_named("hist") == Algorithm("percentile", 99.999)
    assert algorithm_named("percentile:99.9") == Algorithm("percentile", 99.9)
    assert algorithm_named("percentile", 98.0) == Algorithm("percentile", 98.0)
    assert algorithm_named("moving_average_abs_max", moving_rate=0.5) == Algorithm("moving_average", moving_rate=0.5)
    assert set(ALIASES) >= {"KL", "abs_max", "min_max", "hist"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("KLL", "calibrator: unknown value 'KLL'; did you mean 'KL'"),
        ("percentile:0", r"percentile: 0\.0 is outside \(0, 100\]"),
        ("percentile:x", "percentile: 'x' is not a number"),
        ("mse:2", "only percentile takes a number"),
    ],
)
def test_unknown_algorithms_are_named(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        algorithm_named(name)


def test_moving_rate_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"moving_rate 1\.0 is outside \(0, 1\)"):
        algorithm_named("moving_average", moving_rate=1.0)


def test_per_batch_algorithms_need_batches() -> None:
    calibrator = HistogramCalibrator(Algorithm("mse"))
    calibrator.update(torch.ones(2, 2))
    with pytest.raises(CalibrationError, match="p: avg needs the maxima of batches"):
        amax_of({"p": calibrator}, Algorithm("avg"))
