"""Quantizers in training: exact gradients at the clip, ranges that move, freeze and come back as plain ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdq.compress.fake_quant import PactQuantize, RangeSettings, TrainedQuantizer, finish, make_trainable
from qdq.inject import QuantSpec, inject, quantizers
from qdq.inject.pair import FakeQuantize
from qdq.inject.quantizer import TensorQuantizer
from qdq.inject.scale import scale_of
from qdq.loading.model import LoadedModel

HIGH = 127


def smooth(x: torch.Tensor, clip: torch.Tensor) -> torch.Tensor:
    """The part of fake quantization that has a derivative: everything but rounding."""
    return torch.minimum(torch.maximum(x, clip * (-(HIGH + 1) / HIGH)), clip)


def pact(x: torch.Tensor, clip: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = PactQuantize.apply(x, clip, 8)  # type: ignore[no-untyped-call]
    return result


@given(
    st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=20),
    st.floats(0.25, 2.0, width=32),
    st.integers(0, 2**31),
)
def test_pact_gradients_are_finite_differences_of_the_smooth_part(values: list[float], bound: float, seed: int) -> None:
    exact = float(scale_of(torch.tensor(bound), 8)) * HIGH  # a scale is an FP16 number
    x = torch.tensor(values, dtype=torch.float64)
    step = 1e-4
    near = ((x - exact).abs() < 2 * step) | ((x + exact * (HIGH + 1) / HIGH).abs() < 2 * step)
    x = x[~near]  # the smooth part has a corner there
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    clip = torch.tensor(exact, dtype=torch.float64)

    def weighted(inputs: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
        return (weights * smooth(inputs, limit)).sum()

    to_clip = (weighted(x, clip + step) - weighted(x, clip - step)) / (2 * step)
    to_x = weights * (smooth(x + step, clip) - smooth(x - step, clip)) / (2 * step)

    inputs, limit = x.float().requires_grad_(), torch.tensor(exact, requires_grad=True)
    (weights.float() * pact(inputs, limit)).sum().backward()  # type: ignore[no-untyped-call]
    assert inputs.grad is not None and limit.grad is not None
    assert torch.allclose(inputs.grad.double(), to_x, atol=1e-5)
    assert float(limit.grad) == pytest.approx(float(to_clip), abs=1e-4)


@given(st.floats(0.0625, 64.0, width=32))
def test_plain_gradient_stops_exactly_at_the_clip(amax: float) -> None:
    scale = scale_of(torch.tensor(amax), 8)
    x = (scale * torch.tensor([-128.25, -127.75, 0.3, 126.75, 127.25])).requires_grad_()
    FakeQuantize.apply(x, scale, -128, 127).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_values_are_those_of_the_plain_quantizer() -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(1))
    amax = torch.tensor(1.3)
    expected = FakeQuantize.apply(x, scale_of(amax, 8), -128, 127)  # type: ignore[no-untyped-call]
    assert torch.equal(pact(x, amax), expected)


def calibrated(amax: float) -> TensorQuantizer:
    quantizer = TensorQuantizer("here")
    quantizer.set_amax(torch.tensor(amax))
    return quantizer


def test_moving_average_moves_in_training_only() -> None:
    quantizer = TrainedQuantizer(calibrated(1.0), RangeSettings(rate=0.75, pact=False))
    quantizer(torch.tensor([[[3.0]]]))
    assert float(quantizer.final_amax()) == pytest.approx(0.75 * 1.0 + 0.25 * 3.0)
    quantizer.train(False)
    quantizer(torch.tensor([[[9.0]]]))
    quantizer.train()
    quantizer.frozen = True
    quantizer(torch.tensor([[[9.0]]]))
    assert float(quantizer.final_amax()) == pytest.approx(1.5)


def test_padding_does_not_move_a_range() -> None:
    quantizer = TrainedQuantizer(calibrated(1.0), RangeSettings("range_abs_max", pact=False))
    quantizer.token_mask = torch.tensor([[True, False]])
    quantizer(torch.tensor([[[2.0], [50.0]]]))
    assert float(quantizer.final_amax()) == 2.0


def test_abs_max_uses_each_batch_and_ends_at_the_largest() -> None:
    quantizer = TrainedQuantizer(calibrated(1.0), RangeSettings("abs_max", pact=False))
    assert float(quantizer(torch.tensor([[[0.5]]]))) == pytest.approx(0.5, rel=1e-3)
    quantizer(torch.tensor([[[4.0]]]))
    quantizer(torch.tensor([[[2.0]]]))
    assert float(quantizer.final_amax()) == 4.0


def test_learned_clip_moves_towards_lower_error() -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(2))[None, :, None]
    quantizer = TrainedQuantizer(calibrated(0.5), RangeSettings())
    optimizer = torch.optim.Adam([quantizer.clip], lr=0.02)
    errors = []
    for _ in range(60):
        error = (quantizer(x) - x).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < errors[0] / 5
    assert 1.5 < float(quantizer.final_amax()) < 6.0


def test_finish_leaves_plain_quantizers_of_the_trained_model(load_tiny: Callable[..., LoadedModel]) -> None:
    model = load_tiny().model
    inject(model, QuantSpec())
    for point in quantizers(model).values():
        if point.layout != "weight":
            point.set_amax(torch.tensor(2.0))
        else:
            point.set_amax(torch.tensor([[1.0]]))
    before = {name: id(point) for name, point in quantizers(model).items()}
    originals = make_trainable(model, RangeSettings())
    assert all(isinstance(point, TrainedQuantizer) for point in quantizers(model).values())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("clip"):
                parameter.fill_(0.5)
    finish(model, originals)
    after = quantizers(model)
    assert {name: id(point) for name, point in after.items()} == before
    linear = model.get_submodule("bert.encoder.layer.0.output.dense")
    assert torch.equal(
        after["bert.encoder.layer.0.output.dense.weight_quantizer"].amax,
        linear.effective_weight.detach().abs().amax(1, keepdim=True),  # type: ignore[operator, union-attr]
    )
    amax = after["bert.encoder.layer.0.output.dense.input_quantizer"].amax
    assert float(amax) == pytest.approx(2 * torch.tensor(0.5).exp().item())
