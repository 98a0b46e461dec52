"""Error of every attention's output when its probabilities are rounded to INT8, measured while a model runs.

Rows of the rounded softmax no longer sum to 1. With D the rounding error of the probabilities and m the sum of a row of
D, the output is off by ``D V``; `qdq.calibrate.treatments.center` removes the part of it that is proportional to m.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qdq.calibrate.treatments.arithmetic import fake_quantize
from qdq.calibrate.treatments.attentions import attentions
from qdq.inject.quantizer import QuantLinear

EVERY = 8  # queries are sampled: every eighth of a text


@dataclass
class Loss:
    """Error of one attention's output by rounded probabilities: sums over sampled queries, float64.

    Attributes:
        error [heads, d]: squares of ``D V``.
        joint [heads, d]: of ``m D V``.
        mass [heads, 1]: squares of m.
    """

    error: Tensor
    joint: Tensor
    mass: Tensor

    @property
    def center(self) -> Tensor:
        """The constant that leaves the least error, [heads * d]."""
        return (self.joint / self.mass.clamp(min=torch.finfo(torch.float64).tiny)).flatten()

    def left(self, center: Tensor) -> float:
        """Share of the squared error that is left with another constant, [heads * d] float64."""
        c, total = center.view_as(self.joint), float(self.error.sum())
        return float((self.error - 2 * c * self.joint + c.square() * self.mass).sum()) / total if total else 1.0


def watch_losses(module: nn.Module, losses: dict[str, Loss], mask: Callable[[], Tensor]) -> Iterator[RemovableHandle]:
    """Fill `losses`, by attention path, with the error INT8 probabilities would cause in forwards of `module`.

    Measures attentions whose probabilities are quantized. `mask()`: positions [B, S] of the forward that count.
    Yields the hooks, which the caller removes.
    """
    for path, (_, _, value) in attentions(module):
        point = module.get_submodule(path).matmul_a_input_quantizer
        if isinstance(point, nn.Module):
            yield from _hooks(path, value, point, losses, mask)


def _hooks(
    path: str, value: QuantLinear, point: nn.Module, losses: dict[str, Loss], mask: Callable[[], Tensor]
) -> list[RemovableHandle]:
    latest: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        latest[:] = [output]

    def measure(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        now = loss_of(inputs[0], latest.pop(), mask())
        known = losses.get(path)
        if known is not None:
            now = Loss(known.error + now.error, known.joint + now.joint, known.mass + now.mass)
        losses[path] = now

    return [value.register_forward_hook(keep), point.register_forward_hook(measure)]


def loss_of(probabilities: Tensor, values: Tensor, mask: Tensor) -> Loss:
    """The loss of one forward: probabilities [B, heads, S, S], values [B, S, heads * d], mask [B, S] of queries."""
    heads = probabilities.shape[1]
    rows = probabilities[:, :, ::EVERY]
    off = fake_quantize(rows, 1.0) - rows
    error = off @ values.view(*values.shape[:2], heads, -1).transpose(1, 2)
    real = mask[:, ::EVERY]
    error = error.transpose(1, 2)[real].double()  # [n, heads, d]
    mass = off.sum(-1).transpose(1, 2)[real].double()[..., None]  # [n, heads, 1]
    return Loss(error.square().sum(0), (mass * error).sum(0), mass.square().sum(0))
