"""Learning rates by step: a constant, or one of Paddle's schedules by name, stepped once per batch.

    learning_rate: {type: PiecewiseDecay, boundaries: [4500], values: [0.005, 0.0005]}

Source of names, keys and formulas: paddle.optimizer.lr of Paddle 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qdq.auto.config.keys import positive, typed
from qdq.errors import ConfigError

Rate = Callable[[int], float]  # of a step, 0 for the first


@dataclass(frozen=True)
class Constant:
    """The same rate at every step."""

    learning_rate: float

    def __call__(self, step: int) -> float:
        return self.learning_rate


@dataclass(frozen=True)
class Scaled:
    """A rate times a factor."""

    rate: Rate
    factor: float

    def __call__(self, step: int) -> float:
        return self.rate(step) * self.factor


@dataclass(frozen=True)
class PiecewiseDecay:
    """values[i] up to boundaries[i], the last of them behind all boundaries."""

    boundaries: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.boundaries) + 1:
            raise ConfigError(
                f"learning_rate: PiecewiseDecay: {len(self.boundaries)} boundaries need {len(self.boundaries) + 1} "
                f"values, found {len(self.values)}"
            )

    def __call__(self, step: int) -> float:
        return self.values[sum(step >= boundary for boundary in self.boundaries)]


@dataclass(frozen=True)
class ExponentialDecay:
    """learning_rate x gamma ^ step."""

    learning_rate: float
    gamma: float

    def __call__(self, step: int) -> float:
        return self.learning_rate * float(self.gamma**step)


@dataclass(frozen=True)
class NaturalExpDecay:
    """learning_rate x e ^ (-gamma x step)."""

    learning_rate: float
    gamma: float

    def __call__(self, step: int) -> float:
        return self.learning_rate * math.exp(-self.gamma * step)


@dataclass(frozen=True)
class InverseTimeDecay:
    """learning_rate / (1 + gamma x step)."""

    learning_rate: float
    gamma: float

    def __call__(self, step: int) -> float:
        return self.learning_rate / (1 + self.gamma * step)


@dataclass(frozen=True)
class PolynomialDecay:
    """From learning_rate to end_lr in decay_steps, by (1 - step / decay_steps) ^ power; with cycle ever again."""

    learning_rate: float
    decay_steps: int
    end_lr: float = 0.0001
    power: float = 1.0
    cycle: bool = False

    def __post_init__(self) -> None:
        positive(self.decay_steps, "learning_rate: PolynomialDecay: decay_steps")

    def __call__(self, step: int) -> float:
        periods = max(1, math.ceil(step / self.decay_steps)) if self.cycle else 1
        steps = self.decay_steps * periods
        left = 1 - min(step, steps) / steps
        return (self.learning_rate - self.end_lr) * float(left**self.power) + self.end_lr


@dataclass(frozen=True)
class StepDecay:
    """learning_rate x gamma ^ (step // step_size)."""

    learning_rate: float
    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        positive(self.step_size, "learning_rate: StepDecay: step_size")

    def __call__(self, step: int) -> float:
        return self.learning_rate * float(self.gamma ** (step // self.step_size))


@dataclass(frozen=True)
class MultiStepDecay:
    """learning_rate x gamma ^ (milestones that are passed)."""

    learning_rate: float
    milestones: tuple[int, ...]
    gamma: float = 0.1

    def __call__(self, step: int) -> float:
        return self.learning_rate * float(self.gamma ** sum(step >= mark for mark in self.milestones))


@dataclass(frozen=True)
class CosineAnnealingDecay:
    """From learning_rate to eta_min in T_max steps along half a cosine, and back."""

    learning_rate: float
    T_max: int
    eta_min: float = 0.0

    def __post_init__(self) -> None:
        positive(self.T_max, "learning_rate: CosineAnnealingDecay: T_max")

    def __call__(self, step: int) -> float:
        wave = (1 + math.cos(math.pi * step / self.T_max)) / 2
        return self.eta_min + (self.learning_rate - self.eta_min) * wave


@dataclass(frozen=True)
class NoamDecay:
    """learning_rate x d_model^-0.5 x min(step^-0.5, step x warmup_steps^-1.5), steps from 1 (arXiv 1706.03762)."""

    d_model: int
    warmup_steps: int
    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        positive(self.d_model, "learning_rate: NoamDecay: d_model")
        positive(self.warmup_steps, "learning_rate: NoamDecay: warmup_steps")

    def __call__(self, step: int) -> float:
        count = step + 1
        return float(self.learning_rate * self.d_model**-0.5 * min(count**-0.5, count * self.warmup_steps**-1.5))


@dataclass(frozen=True)
class LinearWarmup:
    """From start_lr to end_lr in warmup_steps, then `learning_rate`, a number or another schedule from its start."""

    learning_rate: float | dict[str, Any]
    warmup_steps: int
    start_lr: float
    end_lr: float

    def __post_init__(self) -> None:
        positive(self.warmup_steps, "learning_rate: LinearWarmup: warmup_steps")
        rate_of(self.learning_rate, "learning_rate: LinearWarmup: learning_rate")

    def __call__(self, step: int) -> float:
        if step >= self.warmup_steps:
            return rate_of(self.learning_rate)(step - self.warmup_steps)
        return self.start_lr + (self.end_lr - self.start_lr) * step / self.warmup_steps


_LISTED: tuple[type[Any], ...] = (
    *(PiecewiseDecay, ExponentialDecay, NaturalExpDecay, InverseTimeDecay, PolynomialDecay, StepDecay, MultiStepDecay),
    *(CosineAnnealingDecay, NoamDecay, LinearWarmup),
)
SCHEDULES: Mapping[str, type[Any]] = {cls.__name__: cls for cls in _LISTED}
_CODE = "takes a function, which a configuration cannot hold; write PiecewiseDecay"
REFUSED = {
    "LambdaDecay": _CODE,
    "MultiplicativeDecay": _CODE,
    "ReduceOnPlateau": "needs a loss on evaluation data, and metrics are what is evaluated; write PiecewiseDecay",
}


def rate_of(learning_rate: float | Mapping[str, Any], where: str = "TrainConfig: learning_rate") -> Rate:
    """The rate of a number or of a mapping with a `type`. Raises ConfigError."""
    if isinstance(learning_rate, Mapping):
        made: Rate = typed(SCHEDULES, learning_rate, where, REFUSED)
        return made
    if not learning_rate >= 0:
        raise ConfigError(f"{where}: {learning_rate} must not be negative")
    return Constant(learning_rate)
