"""Quantizers in training: learnable clipping (PACT), moving averages, and weights that follow themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qdq.inject.pair import refuse_trace
from qdq.inject.quantizer import QuantLinear, TensorQuantizer, broadcast_mask, weight_amax
from qdq.inject.scale import scale_of


@dataclass(frozen=True)
class RangeSettings:
    """Rules by which activation ranges follow the training.

    `kind` is moving_average_abs_max (decaying by `rate`), range_abs_max (the largest magnitude seen since the start, or
    in the last `window` batches),
    or abs_max (each batch's own in training, the largest of them afterwards: a graph has one scale).
    """

    kind: str = "moving_average_abs_max"
    rate: float = 0.9
    pact: bool = True  # learn the range instead (arXiv 1805.06085), starting from the calibrated one
    window: int | None = None


class PactQuantize(torch.autograd.Function):
    """Fake quantization with a learnable clip, symmetric, `low` = -high - 1.

    Value: ``clamp(round(x / scale), low, high) * scale`` where ``scale = scale_of(clip)``. Gradients are those of the
    smooth part ``clamp(x, low / high * clip, clip)``: to x inside, to the clip outside (1 above, low / high below).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: Tensor, bits: int) -> Tensor:
        high = 2 ** (bits - 1) - 1
        scaled = x / (scale := scale_of(clip, bits))
        ctx.save_for_backward(scaled)
        ctx.high = high
        return torch.round(scaled).clamp_(-high - 1, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (scaled,), high = ctx.saved_tensors, ctx.high
        above, below = scaled > high, scaled < -high - 1
        clip = None
        if ctx.needs_input_grad[1]:  # not once ranges are frozen; few elements are clipped
            clip = gradients[0][above].sum() - gradients[0][below].sum() * ((high + 1) / high)
        return gradients[0].masked_fill(above | below, 0), clip, None


class TrainedQuantizer(TensorQuantizer):
    """A calibrated quantizer in training. Weights take their range from themselves at every step.

    The learnable range is ``amax * exp(clip)`` with the calibrated amax: a step of the optimizer is then a relative
    change, whatever the magnitude of the tensor.
    """

    def __init__(self, calibrated: TensorQuantizer, settings: RangeSettings) -> None:
        super().__init__(calibrated.point, calibrated._num_bits, calibrated._axis, calibrated.layout)
        self.settings, self.frozen = settings, False
        assert calibrated.amax is not None  # quantization-aware training starts from a calibrated model
        self.set_amax(calibrated.amax)
        if settings.window is not None and settings.kind == "range_abs_max" and self.layout != "weight":
            self.register_buffer("seen", self._amax.new_zeros(settings.window))
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))
            self.seen[0] = self._amax
        if settings.pact and self.layout != "weight":
            self.clip = nn.Parameter(torch.zeros_like(self._amax))

    @property
    def learns(self) -> bool:
        """True when the range is a parameter."""
        return hasattr(self, "clip")

    def forward(self, inputs: Tensor) -> Tensor:
        """Fake-quantize `inputs`, which has any shape and gets the same one back."""
        if self.layout == "weight":
            return self._fake_quantize(inputs, scale_of(weight_amax(inputs, self._axis), self._num_bits))
        if self.learns:
            refuse_trace(self.point)
            # The sum over all clipped elements would drown the weights' gradients when norms are clipped together
            # (LSQ, arXiv 1902.08153, section 2.2, divides likewise).
            damping = (inputs.numel() * 2 ** (self._num_bits - 1)) ** -0.5
            clip = self.clip * damping + (self.clip * (1 - damping)).detach()
            result: Tensor = PactQuantize.apply(  # type: ignore[no-untyped-call]
                inputs, self._amax * clip.exp(), self._num_bits
            )
            return result
        if self.training and not self.frozen:
            self._observe(inputs.detach())
        amax = self._amax
        if self.training and self.settings.kind == "abs_max" and not self.frozen:
            amax = self._largest(inputs.detach())
        return self._fake_quantize(inputs, scale_of(amax, self._num_bits))

    def _observe(self, inputs: Tensor) -> None:
        largest = self._largest(inputs)
        if self.settings.kind == "moving_average_abs_max":
            self._amax.mul_(self.settings.rate).add_(largest, alpha=1 - self.settings.rate)
        elif hasattr(self, "seen"):
            self.count += 1  # the calibrated range counts as the first batch
            self.seen[int(self.count) % len(self.seen)] = largest
            self._amax.copy_(self.seen.max())
        else:
            self._amax.copy_(torch.maximum(self._amax, largest))

    def _largest(self, inputs: Tensor) -> Tensor:
        mask = broadcast_mask(self.token_mask, inputs, self.layout)
        largest: Tensor = (inputs if mask is None else inputs * mask).abs().amax()
        return largest

    def final_amax(self) -> Tensor:
        """The range as trained; a weight's is taken from the weight by whoever owns it."""
        amax: Tensor = self._amax * self.clip.detach().exp() if self.learns else self._amax
        return amax


def make_trainable(model: nn.Module, settings: RangeSettings) -> dict[str, TensorQuantizer]:
    """Put a TrainedQuantizer in the place of every calibrated one; returns those that were there, by point name."""
    originals: dict[str, TensorQuantizer] = {}
    made: dict[int, TrainedQuantizer] = {}
    for owner, name, child in _children(model):
        if isinstance(child, TensorQuantizer) and not isinstance(child, TrainedQuantizer):
            originals[child.point] = child
            setattr(owner, name, made.setdefault(id(child), TrainedQuantizer(child, settings)))
    return originals


def finish(model: nn.Module, originals: dict[str, TensorQuantizer]) -> None:
    """Put the plain quantizers back, with the ranges as trained."""
    for owner, name, child in _children(model):
        if isinstance(child, TrainedQuantizer):
            plain = originals[child.point]
            if child.layout == "weight":
                assert isinstance(owner, QuantLinear)  # the only modules with weight points
                plain.set_amax(weight_amax(owner.effective_weight, plain.axis))
            else:
                plain.set_amax(child.final_amax())
            setattr(owner, name, plain)


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [(owner, name, child) for owner in model.modules() for name, child in owner.named_children()]


def trained_quantizers(model: nn.Module) -> list[TrainedQuantizer]:
    """Every quantizer in training, in model order."""
    return [module for module in model.modules() if isinstance(module, TrainedQuantizer)]
