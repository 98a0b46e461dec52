"""The arithmetic of one quantization point: codes, scales, gradients, statistics and the linear that owns them."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrators import HistogramCalibrator
from qdq.errors import CalibrationError, ExportError
from qdq.inject.quantizer import Layout, QuantLinear, TensorQuantizer, broadcast_mask, folded, weight_amax
from qdq.inject.scale import SMALLEST_FP16, SMALLEST_NORMAL_FP16, scale_of

finite = st.floats(-1e6, 1e6, width=32)
vectors = arrays.arrays(np.float32, st.integers(1, 40), elements=finite)
amaxes = st.floats(0, 8e6, width=32)


def reference(x: np.ndarray, scale: np.ndarray, bits: int = 8) -> np.ndarray:
    """ONNX's QuantizeLinear and DequantizeLinear with zero-point 0."""
    high = 2 ** (bits - 1) - 1
    with np.errstate(over="ignore"):
        return np.asarray(np.clip(np.rint(x / scale), -high - 1, high) * scale)


@given(x=vectors, amax=amaxes)
def test_values_are_exactly_the_onnx_definition(x: np.ndarray, amax: float) -> None:
    quantizer = TensorQuantizer("p")
    quantizer.set_amax(torch.tensor(amax))
    scale = scale_of(torch.tensor(amax), 8).numpy()
    np.testing.assert_array_equal(quantizer(torch.from_numpy(x)).numpy(), reference(x, scale))


@given(amax=st.floats(2.0**-10, 1024, width=32))
def test_values_on_and_beside_a_rounding_edge_are_exact(amax: float) -> None:
    """Multiplying by 1/scale instead of dividing moves some of these to the neighbouring code."""
    quantizer = TensorQuantizer("p")
    quantizer.set_amax(torch.tensor(amax))
    scale = scale_of(torch.tensor(amax), 8).numpy()
    edges = (np.arange(-130, 130, dtype=np.float32) + np.float32(0.5)) * scale
    x = np.concatenate([np.nextafter(edges, np.float32(-np.inf)), edges, np.nextafter(edges, np.float32(np.inf))])
    np.testing.assert_array_equal(quantizer(torch.from_numpy(x)).numpy(), reference(x, scale))


@given(x=arrays.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=finite))
def test_per_channel_values_use_each_channels_own_scale(x: np.ndarray) -> None:
    quantizer = TensorQuantizer("p", axis=0, layout="weight")
    quantizer.set_amax(weight_amax(torch.from_numpy(x), 0))
    scale = scale_of(torch.from_numpy(np.abs(x).max(axis=1, keepdims=True)), 8).numpy()
    np.testing.assert_array_equal(quantizer(torch.from_numpy(x)).numpy(), reference(x, scale))


@given(amax=amaxes, bits=st.integers(2, 8))
def test_a_scale_is_a_positive_fp16_value_that_covers_amax(amax: float, bits: int) -> None:
    scale = float(scale_of(torch.tensor(amax), bits))
    assert scale > 0
    assert float(np.float16(scale)) == scale
    high = 2 ** (bits - 1) - 1
    ideal = float(np.float32(amax / high))  # zero also for the smallest float32 numbers, which get the floor scale
    if 0 < ideal <= 65504:
        assert scale >= ideal * (1 - 2.0**-11)  # half a unit in the last place of an 11-bit significand
        assert scale <= max(ideal * (1 + 2.0**-11), ideal + SMALLEST_FP16)


def test_zero_tiny_and_huge_ranges_have_a_documented_scale() -> None:
    amax = torch.tensor([0.0, 1e-45, 1e-9, 127 * 2.0**-15 * 1.0001, 1e30])
    scale = scale_of(amax, 8)
    assert scale[0] == SMALLEST_NORMAL_FP16
    assert scale[2] == SMALLEST_FP16
    assert scale[3] > 2.0**-15  # a subnormal FP16 is rounded up: what amax covers is not clipped
    assert scale[4] == 65504
    assert bool((scale > 0).all())


@given(x=vectors, bits=st.integers(2, 8))
def test_narrower_codes_are_fewer(x: np.ndarray, bits: int) -> None:
    quantizer = TensorQuantizer("p", bits=bits)
    quantizer.set_amax(torch.tensor(3.0))
    values = quantizer(torch.from_numpy(x)).numpy()
    scale = scale_of(torch.tensor(3.0), bits).numpy()
    np.testing.assert_array_equal(values, reference(x, scale, bits))
    codes = np.rint(values / scale)
    assert codes.min() >= -(2 ** (bits - 1))
    assert codes.max() <= 2 ** (bits - 1) - 1


def test_the_gradient_is_one_inside_the_clipping_range_and_zero_outside() -> None:
    quantizer = TensorQuantizer("p")
    quantizer.set_amax(torch.tensor(127.0))  # scale 1: codes are the rounded values
    x = torch.tensor([-1000.0, -128.4, -127.9, -0.3, 0.0, 5.0, 126.9, 127.1, 1000.0], requires_grad=True)
    (3 * quantizer(x)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 3, 3, 3, 3, 3, 0, 0]


def test_without_amax_the_range_is_that_of_the_tensor() -> None:
    x = torch.tensor([0.5, -2.0])
    assert torch.equal(TensorQuantizer("p")(x), torch.tensor([32.0, -127.0]) * scale_of(torch.tensor(2.0), 8))


def test_a_disabled_point_returns_its_input() -> None:
    quantizer = TensorQuantizer("p")
    x = torch.randn(3)
    quantizer.disable_quant()
    assert quantizer(x) is x
    quantizer.enable_quant()
    quantizer.disable()
    assert quantizer(x) is x


@pytest.mark.parametrize("amax", [math.nan, math.inf, -1.0])
def test_an_unusable_amax_is_refused_by_name(amax: float) -> None:
    with pytest.raises(CalibrationError, match=r"encoder\.layer\.0\.query"):
        TensorQuantizer("encoder.layer.0.query").set_amax(torch.tensor(amax))


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "saw no data"), (0.0, "saw only zeros"), (math.nan, "saw NaN or infinity"), (math.inf, "saw NaN")],
)
def test_a_point_without_usable_statistics_is_an_error_naming_it(value: float | None, words: str) -> None:
    quantizer = TensorQuantizer("layer.7.output")
    quantizer.disable_quant()
    quantizer.enable_calib()
    if value is not None:
        quantizer(torch.full((1, 2, 3), value))
    with pytest.raises(CalibrationError, match=rf"layer\.7\.output.*{words}"):
        quantizer.load_calib_amax()


def test_options_of_other_calibrators_are_refused_instead_of_ignored() -> None:
    with pytest.raises(CalibrationError, match="choose the calibrator instead"):
        TensorQuantizer("p").load_calib_amax("percentile", percentile=99.9)


def test_collecting_leaves_the_values_alone_and_stops_after_loading() -> None:
    quantizer = TensorQuantizer("p")
    quantizer.disable_quant()
    quantizer.enable_calib()
    x = torch.tensor([[[1.0, -4.0]]])
    assert quantizer(x) is x
    quantizer.load_calib_amax()
    quantizer(torch.tensor([[[100.0, 1.0]]]))
    assert float(quantizer.amax) == 4.0


@given(mask=arrays.arrays(np.bool_, (2, 5)).filter(lambda mask: bool(mask.any())))
def test_padded_positions_do_not_count_in_any_layout(mask: np.ndarray) -> None:
    tokens = torch.from_numpy(mask)
    states, heads, scores = torch.randn(2, 5, 3), torch.randn(2, 4, 5, 3), torch.randn(2, 4, 5, 5)
    pairs = (tokens[:, None, :, None] & tokens[:, None, None, :]).expand_as(scores)
    cases: dict[Layout, tuple[torch.Tensor, torch.Tensor]] = {
        "tokens": (states, states[tokens]),
        "heads": (heads, heads.transpose(1, 2)[tokens]),
        "scores": (scores, scores[pairs]),
    }
    for layout, (x, counted) in cases.items():
        quantizer = TensorQuantizer("p", layout=layout)
        quantizer.disable_quant()
        quantizer.enable_calib()
        quantizer.token_mask = tokens
        quantizer(x)
        quantizer.load_calib_amax()
        assert float(quantizer.amax) == float(counted.abs().max())


def test_pooled_and_weight_tensors_have_no_padding() -> None:
    mask = torch.ones(2, 5, dtype=torch.bool)
    assert broadcast_mask(mask, torch.zeros(2, 3), "pooled") is None
    assert broadcast_mask(mask, torch.zeros(4, 3), "weight") is None
    assert broadcast_mask(None, torch.zeros(2, 5, 3), "tokens") is None


def test_a_calibrator_can_be_exchanged() -> None:
    quantizer = TensorQuantizer("p")
    quantizer.calibrator = HistogramCalibrator(algorithm_named("percentile", 50.0))
    quantizer.disable_quant()
    quantizer.enable_calib()
    quantizer(torch.arange(1.0, 101.0).reshape(1, 100, 1))
    quantizer.load_calib_amax()
    assert float(quantizer.amax) == 50.0


def test_amax_travels_in_a_state_dict_without_a_gpu() -> None:
    quantizer, other = TensorQuantizer("p"), TensorQuantizer("p")
    quantizer.set_amax(torch.tensor(2.5))
    other.load_state_dict(quantizer.state_dict())
    assert float(other.amax) == 2.5
    assert float(copy.deepcopy(quantizer).amax) == 2.5


def linear(output_scale: float = 1.0) -> tuple[nn.Linear, Any]:
    torch.manual_seed(3)
    source = nn.Linear(6, 4)
    points = TensorQuantizer("l.input"), TensorQuantizer("l.weight", axis=0, layout="weight")
    return source, QuantLinear(source, *points, output_scale)


def test_a_quantized_linear_multiplies_the_two_quantized_operands() -> None:
    source, quantized = linear()
    x = torch.randn(5, 6)
    quantized._input_quantizer.set_amax(x.abs().amax())
    step = scale_of(x.abs().amax(), 8).numpy()
    steps = scale_of(source.weight.abs().amax(1, keepdim=True), 8).numpy()
    expected = reference(x.numpy(), step) @ reference(source.weight.detach().numpy(), steps).T
    actual = quantized(x).detach().numpy() - source.bias.detach().numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-6)  # float32 sums of 6 terms


def test_a_quantized_linear_shares_the_parameters_and_trains_them() -> None:
    source, quantized = linear(0.25)
    assert quantized.weight is source.weight
    assert quantized.bias is source.bias
    assert set(quantized.state_dict()) == {"weight", "bias"}
    quantized(torch.randn(2, 6)).sum().backward()
    assert source.weight.grad is not None
    assert bool((source.weight.grad != 0).any())


@given(scale=st.sampled_from([0.125, 1 / math.sqrt(32), 1 / math.sqrt(12)]))
@settings(max_examples=3)
def test_the_output_scale_is_applied_to_weight_and_bias(scale: float) -> None:
    source, quantized = linear(scale)
    quantized._input_quantizer = quantized._weight_quantizer = None
    x = torch.randn(5, 6)
    torch.testing.assert_close(quantized(x), source(x) * scale)


def test_folding_changes_nothing_computed_and_restores_the_parameters() -> None:
    source, quantized = linear(1 / math.sqrt(12))
    model = nn.Sequential(quantized)
    x = torch.randn(5, 6)
    quantized._input_quantizer.set_amax(torch.tensor(2.0))
    before = model(x)
    with folded(model):
        assert quantized.output_scale == 1.0
        assert quantized.weight is not source.weight
        assert torch.equal(model(x), before)
    assert quantized.weight is source.weight
    assert quantized.bias is source.bias
    assert quantized.output_scale == 1 / math.sqrt(12)
    assert torch.equal(model(x), before)


def test_a_narrow_weight_is_folded_onto_its_grid() -> None:
    _, quantized = linear(1.0)
    quantized._weight_quantizer._num_bits = 4
    quantized._weight_quantizer.set_amax(quantized.weight.detach().abs().amax(1, keepdim=True))
    x = torch.randn(5, 6)
    quantized._input_quantizer.set_amax(torch.tensor(2.0))
    before = quantized(x)
    with folded(nn.Sequential(quantized)):
        codes = quantized.weight / scale_of(quantized._weight_quantizer.amax, 4)  # what QuantizeLinear will round
        assert torch.equal(quantized(x), before)
    assert (codes - codes.round()).abs().max() < 1e-5
    assert codes.round().abs().max() == 7


def test_a_plain_export_needs_a_range_and_eight_bits() -> None:
    quantizer = TensorQuantizer("encoder.layer.0.query.input_quantizer")
    with pytest.raises(ExportError, match=r"query\.input_quantizer: no calibrated amax"):
        quantizer._constant_pair(torch.ones(2))
    narrow = TensorQuantizer("query.weight_quantizer", 4, 0, "weight")
    narrow.set_amax(torch.ones(2, 1))
    with pytest.raises(
        ExportError, match=r"query\.weight_quantizer: codes of 4 bits are exported by 'qdq export' only"
    ):
        narrow._constant_pair(torch.ones(2, 2))


def test_a_weight_is_calibrated_to_its_own_range_by_the_protocol() -> None:
    quantizer = TensorQuantizer("query.weight_quantizer", 8, 0, "weight")
    with pytest.raises(CalibrationError, match="saw no weight"):
        quantizer.load_calib_amax()
    quantizer.enable_calib()
    quantizer(torch.tensor([[1.0, -3.0], [0.5, 0.25]]))
    quantizer.load_calib_amax()
    assert quantizer.amax is not None and quantizer.amax.tolist() == [[3.0], [0.5]]


def test_folding_restores_after_an_error() -> None:
    source, quantized = linear(0.5)
    with pytest.raises(KeyError), folded(nn.Sequential(quantized)):
        raise KeyError
    assert quantized.weight is source.weight
    assert quantized.output_scale == 0.5
