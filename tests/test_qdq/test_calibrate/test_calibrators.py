"""Calibrators against brute force: exact quantiles, masks, merging in any grouping, errors that name the point."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrators import HistogramCalibrator
from qdq.errors import CalibrationError, ConfigError
from qdq.inject.statistics import MaxCalibrator

CALIBRATORS = ("max", "percentile")

FLOATS = st.floats(min_value=-7e4, max_value=7e4, width=32, allow_subnormal=True)
TENSORS = arrays.arrays(np.float32, st.integers(1, 40), elements=FLOATS)
PERCENTILES = st.one_of(st.sampled_from([100.0, 99.999, 99.99, 50.0, 25.0, 1e-9]), st.floats(0.001, 100))


def make_calibrator(name: str, percentile: float | None = None) -> HistogramCalibrator | MaxCalibrator:
    algorithm = algorithm_named(name, percentile)
    return MaxCalibrator() if algorithm.name == "max" else HistogramCalibrator(algorithm)


def percentile_calibrator(percentile: float = 99.99) -> HistogramCalibrator:
    return HistogramCalibrator(algorithm_named("percentile", percentile))


def fed(calibrator: Any, *tensors: Any) -> Any:
    for tensor in tensors:
        calibrator.update(torch.as_tensor(tensor))
    return calibrator


def brute_force(values: np.ndarray, percentile: float) -> float:
    """numpy's own quantile of the FP16 magnitudes; its `q` is an array because numpy would round a float to FP16."""
    magnitudes = np.minimum(np.abs(values), 65504).astype(np.float16)
    quantile = float(np.quantile(magnitudes, np.array(percentile / 100), method="inverted_cdf"))
    largest = float(np.abs(values).max())
    return min(quantile, largest) if quantile > 0 else largest


@given(TENSORS.filter(np.any))
def test_max_is_the_largest_magnitude(values: np.ndarray) -> None:
    assert fed(MaxCalibrator(), values).amax("p") == np.abs(values).max()


@settings(max_examples=150)
@given(TENSORS.filter(np.any), PERCENTILES)
def test_percentile_is_numpys_quantile_of_the_fp16_magnitudes(values: np.ndarray, percentile: float) -> None:
    assert fed(percentile_calibrator(percentile), values).amax("p") == brute_force(values, percentile)


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0, 99.99, 99.999, 100.0])
def test_percentile_of_many_elements(percentile: float) -> None:
    values = np.random.default_rng(0).standard_normal(200_001).astype(np.float32)
    assert fed(percentile_calibrator(percentile), values).amax("p") == brute_force(values, percentile)


def test_percentile_clips_outliers_and_max_does_not() -> None:
    values = torch.cat([torch.linspace(-1, 1, 100_000), torch.tensor([1000.0, -2000.0])])
    assert fed(percentile_calibrator(99.99), values).amax("p") == pytest.approx(1.0, rel=1e-3)
    assert fed(MaxCalibrator(), values).amax("p") == 2000.0


def test_percentile_never_exceeds_the_largest_magnitude_though_fp16_rounds_up() -> None:
    assert fed(percentile_calibrator(100), [1.0007]).amax("p") == float(torch.tensor(1.0007))


def test_values_beyond_fp16_are_counted_at_its_end() -> None:
    assert fed(percentile_calibrator(100), [1e30, -2e30]).amax("p") == 65504.0
    assert fed(percentile_calibrator(50), [1.0, 2.0, 1e9, -1e30]).amax("p") == 2.0


def test_sparse_point_falls_back_to_its_largest_magnitude() -> None:
    values = torch.zeros(1_000_000)
    values[7] = -0.25
    assert fed(percentile_calibrator(99.99), values).amax("p") == 0.25
    assert fed(percentile_calibrator(99.99), [1e-12]).amax("p") == float(torch.tensor(1e-12))  # zero in FP16


@pytest.mark.parametrize("algorithm", CALIBRATORS)
def test_update_leaves_the_tensor_alone(algorithm: str) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        x = torch.tensor([[-3.0, 2.0], [1.0, -0.5]], dtype=dtype)
        before = x.clone()
        calibrator = make_calibrator(algorithm, 100)
        calibrator.update(x, torch.tensor([[True], [False]]))
        assert calibrator.amax("p") == 3.0
        assert torch.equal(x, before)


# Masks


# Layout of a quantization point -> shape of x, and the [B, S] token mask as TensorQuantizer passes it.
MASKS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "tokens": ((3, 5, 4), lambda m: m[:, :, None]),
    "heads": ((3, 2, 5, 4), lambda m: m[:, None, :, None]),
    "scores": ((3, 2, 5, 5), lambda m: m[:, None, :, None] & m[:, None, None, :]),
}


@pytest.mark.parametrize("algorithm", CALIBRATORS)
@pytest.mark.parametrize("layout", MASKS)
@given(seed=st.integers(0, 2**16), lengths=st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any))
@settings(max_examples=25)
def test_masked_elements_do_not_count(algorithm: str, layout: str, seed: int, lengths: list[int]) -> None:
    shape, broadcast = MASKS[layout]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    mask = broadcast(torch.arange(5)[None] < torch.tensor(lengths)[:, None])
    x = torch.where(mask, x, torch.tensor(float("nan")))  # what stands in padding must not matter at all
    masked, selected = make_calibrator(algorithm, 90), make_calibrator(algorithm, 90)
    masked.update(x, mask)
    selected.update(x[mask.expand_as(x)])
    assert same(masked, selected)


def test_transposed_views_count_like_their_copies() -> None:
    x = torch.randn(2, 7, 3, 4).transpose(1, 2)
    mask = torch.arange(7)[None, None, :, None] < torch.tensor([7, 3])[:, None, None, None]
    view, copy = percentile_calibrator(), percentile_calibrator()
    view.update(x, mask)
    copy.update(x.contiguous(), mask)
    assert same(view, copy)


# Merging


def same(a: Any, b: Any) -> bool:
    """Equal in every collected number."""
    if isinstance(a, HistogramCalibrator):
        return torch.equal(a.counts, b.counts) and same(a.maximum, b.maximum)
    return bool(a.largest == b.largest or (math.isnan(a.largest) and math.isnan(b.largest)))


@pytest.mark.parametrize("algorithm", CALIBRATORS)
@given(data=st.data())
@settings(max_examples=40)
def test_any_grouping_and_order_collects_the_same(algorithm: str, data: st.DataObject) -> None:
    values = torch.from_numpy(data.draw(arrays.arrays(np.float32, 24, elements=FLOATS)))
    cuts = sorted(data.draw(st.lists(st.integers(0, 24), max_size=5)))
    parts: list[Tensor] = [values[a:b] for a, b in zip([0, *cuts], [*cuts, 24], strict=True)]
    order = data.draw(st.permutations(range(len(parts))))
    whole = fed(make_calibrator(algorithm), values)
    merged = make_calibrator(algorithm)
    for index in order:
        merged.merge(fed(make_calibrator(algorithm), parts[index]))
    assert same(whole, merged)
    assert same(whole, fed(make_calibrator(algorithm), *(parts[index] for index in order)))


@pytest.mark.parametrize("algorithm", CALIBRATORS)
def test_merging_an_empty_calibrator_changes_nothing(algorithm: str) -> None:
    filled = fed(make_calibrator(algorithm), [1.0, -2.0])
    filled.merge(make_calibrator(algorithm))
    empty = make_calibrator(algorithm)
    empty.merge(filled)
    assert same(empty, filled)
    assert filled.amax("p") == 2.0


# Errors


@pytest.mark.parametrize("algorithm", CALIBRATORS)
@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([], "layer.3.query.input: saw no data; calibrate with text that reaches this point"),
        ([[]], "layer.3.query.input: saw no data"),
        ([[0.0, -0.0], [0.0]], "layer.3.query.input: saw only zeros; more varied calibration text"),
        ([[1.0], [math.nan, 2.0], [3.0]], "layer.3.query.input: saw NaN or infinity; check the checkpoint's weights"),
        ([[math.inf, 1.0]], "layer.3.query.input: saw NaN or infinity"),
        ([[1.0, -math.inf], [2.0]], "layer.3.query.input: saw NaN or infinity"),
    ],
)
def test_useless_data_is_an_error_naming_the_point(algorithm: str, tensors: list[list[float]], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        fed(make_calibrator(algorithm), *tensors).amax("layer.3.query.input")


@pytest.mark.parametrize("algorithm", CALIBRATORS)
def test_nan_sticks_through_merges(algorithm: str) -> None:
    calibrator = fed(make_calibrator(algorithm), [1.0])
    calibrator.merge(fed(make_calibrator(algorithm), [math.nan]))
    calibrator.merge(fed(make_calibrator(algorithm), [2.0]))
    with pytest.raises(CalibrationError, match="p: saw NaN"):
        calibrator.amax("p")


@pytest.mark.parametrize("algorithm", CALIBRATORS)
def test_a_fully_masked_tensor_is_no_data(algorithm: str) -> None:
    calibrator = make_calibrator(algorithm)
    calibrator.update(torch.randn(2, 3), torch.zeros(2, 1, dtype=torch.bool))
    with pytest.raises(CalibrationError, match="saw no data"):
        calibrator.amax("p")


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.1, math.nan])
def test_impossible_percentile(percentile: float) -> None:
    with pytest.raises(ConfigError, match=r"outside \(0, 100\]"):
        percentile_calibrator(percentile)


def test_unknown_calibrator_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"calibrator: unknown value 'percentil'; did you mean 'percentile'\?"):
        make_calibrator("percentil")
