"""The training that TrainConfig describes, as the methods of `qdq.compress` take one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from qdq.auto.config.keys import typed
from qdq.auto.config.optimizers import OPTIMIZERS, GradClip, Regularizer
from qdq.auto.config.training import TrainConfig
from qdq.auto.training.distance import Distance
from qdq.errors import ConfigError

CLOSE = 0.005  # of the metric before: a model that is back so near ends its training


@dataclass(frozen=True)
class TrainingRecipe:
    """Optimizer, schedule, loss and end of one training.

    Attributes:
        training: the section.
        loss: of the student.
        before: metric of the model as given.
        last: the quantization step of several steps, which trains with a tenth of the learning rate.
    """

    training: TrainConfig
    loss: Distance
    before: float
    last: bool

    @property
    def deciding(self) -> Mapping[str, Any]:
        """Values that decide the numbers of a training."""
        train = self.training
        losses = [(one.name, one.losses) for one in self.loss.teachers]
        return {
            "learning_rate by step": train.learning_rate,
            "optimizer_builder": train.builder,
            "amp_config": train.amp,
            "target_metric": train.target_metric,
            "distillation": losses,
        }

    def optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Optimizer of the section's name; the rate is `scheduler`'s."""
        builder = self.training.builder
        return typed(OPTIMIZERS, builder.optimizer, "optimizer").make(groups, builder.weight_decay or 0.0)

    def scheduler(self, optimizer: Optimizer) -> LambdaLR:
        """The learning rate by step."""
        return LambdaLR(optimizer, self.training.rate(self.last))

    def callbacks(self) -> Sequence[TrainerCallback]:
        """Callbacks for what is done to gradients, and for layers that are computed again."""
        builder = self.training.builder
        found: list[TrainerCallback] = []
        if builder.clip is not None or builder.penalty is not None:
            found.append(Gradients(builder.clip, builder.penalty))
        if self.training.recompute:
            found.append(Recompute())
        return found

    def distance(self, student: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss."""
        return self.loss(student, batch)

    def enough(self, metric: float, best: float) -> bool:
        """True above target_metric, and where the best is within half a per cent of the metric before."""
        target = self.training.target_metric
        if target is not None and metric > target:
            return True
        return self.before != 0 and abs(best - self.before) / abs(self.before) <= CLOSE


class Gradients(TrainerCallback):
    """Clips gradients, then adds the slope of the penalty, as Paddle orders them."""

    def __init__(self, clip: GradClip | None, penalty: Regularizer | None) -> None:
        self.clip, self.penalty = clip, penalty

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Change the gradients of what the optimizer is about to step."""
        groups = kwargs["optimizer"].param_groups
        parameters = [one for group in groups for one in group["params"] if one.grad is not None]
        if self.clip is not None:
            self.clip.apply(parameters)
        if self.penalty is not None:
            for parameter in parameters:
                self.penalty.add_to(parameter)


class Recompute(TrainerCallback):
    """Lets the student's layers be computed again in the backward pass while it trains."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Switch it on."""
        kwargs["model"].student.activation_checkpointing_enable()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Switch it off."""
        kwargs["model"].student.activation_checkpointing_disable()


def precision(training: TrainConfig) -> dict[str, bool]:
    """Arguments of transformers' Trainer for amp_config. Raises ConfigError for float16 without a GPU."""
    if training.amp is None:
        return {}
    graphics = torch.accelerator.is_available()
    half = (training.amp.dtype or ("float16" if graphics else "bfloat16")) == "float16"
    if half and not graphics:
        raise ConfigError("TrainConfig: amp_config: dtype float16 needs a GPU; write bfloat16, or leave it out")
    return {"fp16": half, "bf16": not half}


def norm_limit(training: TrainConfig) -> float:
    """Limit that Trainer clips by: none, but a number where gradients have to be unscaled before ours."""
    builder = training.builder
    return math.inf if builder.clip is not None or builder.penalty is not None else 0.0
