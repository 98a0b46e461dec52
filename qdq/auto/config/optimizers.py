"""Optimizers, regularizers and gradient clips by Paddle's names, with Paddle's keys and defaults, done by torch's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from qdq.auto.config.keys import positive, within

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

Groups = Sequence[dict[str, Any]]  # parameter groups of torch


class Builder(Protocol):
    """One optimizer by name."""

    def make(self, groups: Groups, decay: float) -> Optimizer:
        """The optimizer of the groups, each with its learning rate; `decay` is the weight decay."""
        ...


@dataclass(frozen=True)
class SGD:
    """Plain gradient descent."""

    def make(self, groups: Groups, decay: float) -> Optimizer:
        """As `Builder`."""
        from torch import optim

        return optim.SGD(groups, lr=1.0, weight_decay=decay)


@dataclass(frozen=True)
class Momentum:
    """Gradient descent with momentum."""

    momentum: float = 0.9
    use_nesterov: bool = False

    def __post_init__(self) -> None:
        within(self.momentum, 0, 1, "optimizer: Momentum: momentum")

    def make(self, groups: Groups, decay: float) -> Optimizer:
        """As `Builder`."""
        from torch import optim

        return optim.SGD(groups, lr=1.0, momentum=self.momentum, nesterov=self.use_nesterov, weight_decay=decay)


@dataclass(frozen=True)
class Adam:
    """Adam; weight decay is added to the gradients."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        within(self.beta1, 0, 1, "optimizer: beta1")
        within(self.beta2, 0, 1, "optimizer: beta2")

    def make(self, groups: Groups, decay: float) -> Optimizer:
        """As `Builder`."""
        from torch import optim

        return optim.Adam(groups, 1.0, (self.beta1, self.beta2), self.epsilon, decay)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    def make(self, groups: Groups, decay: float) -> Optimizer:
        """As `Builder`."""
        from torch import optim

        return optim.AdamW(groups, 1.0, (self.beta1, self.beta2), self.epsilon, decay)


@dataclass(frozen=True)
class Adamax(Adam):
    """Adam by the largest magnitude of gradients."""

    def make(self, groups: Groups, decay: float) -> Optimizer:
        """As `Builder`."""
        from torch import optim

        return optim.Adamax(groups, 1.0, (self.beta1, self.beta2), self.epsilon, decay)


@dataclass(frozen=True)
class Adagrad:
    """Adagrad."""

    epsilon: float = 1e-6
    initial_accumulator_value: float = 0.0

    def make(self, groups: Groups, decay: float) -> Optimizer:
        """As `Builder`."""
        from torch import optim

        start = self.initial_accumulator_value
        return optim.Adagrad(groups, 1.0, 0.0, decay, start, self.epsilon)


@dataclass(frozen=True)
class Adadelta:
    """Adadelta."""

    epsilon: float = 1e-6
    rho: float = 0.95

    def make(self, groups: Groups, decay: float) -> Optimizer:
        """As `Builder`."""
        from torch import optim

        return optim.Adadelta(groups, 1.0, self.rho, self.epsilon, decay)


@dataclass(frozen=True)
class RMSProp:
    """RMSProp."""

    rho: float = 0.95
    epsilon: float = 1e-6
    momentum: float = 0.0
    centered: bool = False

    def make(self, groups: Groups, decay: float) -> Optimizer:
        """As `Builder`."""
        from torch import optim

        return optim.RMSprop(groups, 1.0, self.rho, self.epsilon, decay, self.momentum, self.centered)


_LISTED: tuple[type[Any], ...] = (SGD, Momentum, Adam, AdamW, Adamax, Adagrad, Adadelta, RMSProp)
OPTIMIZERS: Mapping[str, type[Builder]] = {cls.__name__: cls for cls in _LISTED}
_ABSENT = "torch has none; AdamW is what encoders are usually trained with"
OPTIMIZERS_REFUSED = {"Lamb": _ABSENT, "LarsMomentum": _ABSENT, "DGCMomentumOptimizer": _ABSENT}


@dataclass(frozen=True)
class Regularizer:
    """A penalty on the size of weights: `coeff` times the slope of half their squares."""

    coeff: float = 0.0

    def add_to(self, weight: Tensor) -> None:
        """Add the slope to the gradient of `weight`."""
        assert weight.grad is not None  # the caller has looked
        weight.grad.add_(self.slope(weight.detach()), alpha=self.coeff)

    def slope(self, weight: Tensor) -> Tensor:
        """Slope of the penalty at `weight`, without the coefficient."""
        return weight


@dataclass(frozen=True)
class L1Decay(Regularizer):
    """The sum of magnitudes."""

    def slope(self, weight: Tensor) -> Tensor:
        """As in `Regularizer`."""
        return weight.sign()


REGULARIZERS: Mapping[str, type[Regularizer]] = {"L2Decay": Regularizer, "L1Decay": L1Decay}


class GradClip(Protocol):
    """A limit of gradients."""

    def apply(self, parameters: Sequence[Tensor]) -> None:
        """Clip the gradients of `parameters`, all of which have one, in place."""
        ...


@dataclass(frozen=True)
class ClipByGlobalNorm:
    """A limit of the norm of all gradients together."""

    clip_norm: float

    def __post_init__(self) -> None:
        positive(self.clip_norm, "grad_clip: clip_norm")

    def apply(self, parameters: Sequence[Tensor]) -> None:
        """As in `GradClip`."""
        from torch.nn.utils import clip_grad_norm_

        clip_grad_norm_(parameters, self.clip_norm)


@dataclass(frozen=True)
class ClipByNorm(ClipByGlobalNorm):
    """A limit of each gradient's norm."""

    def apply(self, parameters: Sequence[Tensor]) -> None:
        """As in `GradClip`."""
        for parameter in parameters:
            super().apply([parameter])


@dataclass(frozen=True)
class ClipByValue:
    """Limits of every element: [min, max], where min is -max unless given."""

    max: float
    min: float | None = None

    def apply(self, parameters: Sequence[Tensor]) -> None:
        """As in `GradClip`."""
        for parameter in parameters:
            assert parameter.grad is not None  # the caller has looked
            parameter.grad.clamp_(-self.max if self.min is None else self.min, self.max)


CLIPS: Mapping[str, type[GradClip]] = {
    "ClipGradByGlobalNorm": ClipByGlobalNorm,
    "ClipGradByNorm": ClipByNorm,
    "ClipGradByValue": ClipByValue,
}
