"""The training loss: the caller's function, a criterion on logits and labels, or the model's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qdq.compress.callbacks import paddle_calls
from qdq.compress.datasets import Labels
from qdq.compress.evaluators import logits_of
from qdq.errors import ConfigError

Criterion = Callable[[Any, Any], Any]  # of (logits, labels); for question answering both are (start, end)
CalcLoss = Callable[[Any, nn.Module, Any, Any], Any]  # of (loss_fct, model, batch, head_mask), from the older API


@dataclass(frozen=True)
class TaskLoss:
    """``loss(model, batch, head_mask)`` to a scalar tensor.

    `calc_loss` wins over `criterion`. The head mask acts in our attention function whether or not it is passed on.
    """

    criterion: Criterion | None = None
    calc_loss: CalcLoss | None = None
    labels: Labels = field(default_factory=Labels)

    def __call__(self, model: nn.Module, batch: Any, head_mask: Tensor | None = None) -> Tensor:
        """Raises ConfigError naming the function that returned something else than a finite scalar tensor."""
        if self.calc_loss is not None:
            with paddle_calls(model, logits_of):
                loss = self.calc_loss(self.criterion or cross_entropy, model, batch, head_mask)
            return _scalar(loss, "custom_dynabert_calc_loss")
        if self.criterion is not None:
            logits = logits_of(model(**self.labels.without(batch)))
            return _scalar(self.criterion(logits, self.labels.of(batch)), "criterion")
        output = model(**batch)
        loss = output.get("loss") if hasattr(output, "get") else None
        if loss is None:
            raise ConfigError(
                f"{type(model).__name__}: returns no loss for these batches ({', '.join(batch)}); pass criterion"
            )
        return _scalar(loss, f"the loss of {type(model).__name__}")


def cross_entropy(logits: Any, labels: Any) -> Tensor:
    """Cross-entropy over the last dimension; the mean of both for (start, end)."""
    if isinstance(logits, tuple):
        return torch.stack([cross_entropy(one, label) for one, label in zip(logits, labels, strict=True)]).mean()
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


def _scalar(loss: Any, what: str) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ConfigError(f"{what}: returned {found}, not a scalar; return the mean over the batch")
    if not bool(torch.isfinite(loss)):
        raise ConfigError(f"{what}: is {float(loss)} on the data; check the labels and the learning rate")
    return loss.reshape(())
