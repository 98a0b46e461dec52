"""Distillation losses: logits by soft cross-entropy or squared error, hidden states and embeddings by squared error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from qdq.compress.datasets import IGNORED_LABEL, Labels
from qdq.compress.elastic import Size, Switch
from qdq.compress.evaluators import logits_of
from qdq.inject.widths import blocks
from qdq.tasks.heads import Kind, head_of_model

LEAST = 1e-6  # a probability's distance from 0 and 1 where its logit is taken
REPRESENTATION_WEIGHT = 0.1  # of hidden states and embeddings against logits: DynaBERT's lambda_2 / lambda_1


def soft_cross_entropy(student: Any, teacher: Any, counts: Tensor | None = None, kind: Kind = "classes") -> Tensor:
    """Mean over samples or tokens of -sum(softmax(teacher) * log_softmax(student)); the mean of both for (start, end).

    `counts` [B, S] says which positions count when there are logits per token; UIE's probabilities (`marks`) are
    compared one by one. By the `kind` of head the classes of a
    multi-label model are distilled one by one, and scores by their squared error.
    """
    if isinstance(student, tuple):
        pairs = list(zip(student, teacher, strict=True))
        if kind == "marks":
            return torch.stack([marks_cross_entropy(*pair, counts) for pair in pairs]).mean()
        return torch.stack([soft_cross_entropy(*pair) for pair in pairs]).mean()
    assert isinstance(student, Tensor) and isinstance(teacher, Tensor)  # one model gives both
    if kind == "multi-label":
        return functional.binary_cross_entropy_with_logits(student, teacher.sigmoid())
    if kind == "scores" or student.shape[-1] == 1:
        return functional.mse_loss(student, teacher)
    return _mean(-(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1), counts)


def marks_cross_entropy(student: Tensor, teacher: Tensor, counts: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy of probabilities [B, S] to the teacher's, over counted tokens.

    Of their logits, so that a sure student still has a gradient.
    """
    each = functional.binary_cross_entropy_with_logits(torch.logit(student, LEAST), teacher, reduction="none")
    return _mean(each, counts)


def logit_error(student: Any, teacher: Any, counts: Tensor | None = None) -> Tensor:
    """Mean squared error of logits, of (start, end) the mean of both over counted positions; `counts` as above.

    Where the teacher is sure, as on texts it was trained on, soft labels hardly change with the logits and leave them
    to drift; this does not (arXiv 2105.08919 compares the two).
    """
    if isinstance(student, tuple):
        pairs = zip(student, teacher, strict=True)
        return torch.stack([logit_error(one[..., None], other[..., None], counts) for one, other in pairs]).mean()
    return squared_error([student], [teacher], counts)


def squared_error(student: list[Tensor], teacher: list[Tensor], counts: Tensor | None) -> Tensor:
    """Sum over states of the mean squared error, over counted positions only; states are [B, S, H]."""
    pairs = zip(student, teacher, strict=True)
    return torch.stack([_mean((one - other).square().mean(-1), counts) for one, other in pairs]).sum()


def _mean(values: Tensor, counts: Tensor | None) -> Tensor:
    return values[counts].mean() if counts is not None and values.shape == counts.shape else values.mean()


@contextmanager
def recorded_states(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The embeddings and the output of every layer of each forward in the block, in a list that starts empty."""
    states: list[Tensor] = []

    def before(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        if not states:
            states.append(inputs[0] if inputs else options["hidden_states"])

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks:
        for block in blocks(model):
            hooks.enter_context(block.module.register_forward_pre_hook(before, with_kwargs=True))
            hooks.enter_context(block.module.register_forward_hook(after))
        yield states


def counted(batch: Mapping[str, Tensor]) -> Tensor | None:
    """[B, S] positions that are no padding, None when the batch does not say."""
    mask = batch.get("attention_mask")
    return None if mask is None else mask.bool()


def labelled(batch: Mapping[str, Tensor], labels: Labels) -> Tensor | None:
    """[B, S] positions whose logits are used: those with a label of their own, else those that are no padding."""
    columns = labels.columns(batch)
    values = batch[columns[0]] if len(columns) == 1 else None
    if values is not None and values.dim() > 1 and values.shape == batch["input_ids"].shape:
        return values != IGNORED_LABEL
    return counted(batch)


class WidthTraining(nn.Module):
    """Module of a training whose loss is `distance(student, batch)`, summed over the widths it runs at."""

    accepts_loss_kwargs = False

    def __init__(
        self, student: PreTrainedModel, switch: Switch, sizes: list[Size], distance: Callable[[nn.Module, Any], Tensor]
    ) -> None:
        super().__init__()
        self.student = student
        self._switch, self._sizes, self._distance = switch, sizes, distance

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """The batch of the student model."""
        losses = []
        for size in self._sizes:
            self._switch.size = size
            losses.append(self._distance(self.student, batch))
        self._switch.size = None
        return {"loss": torch.stack(losses).sum()}


class WidthDistillation(nn.Module):
    """Module of a DynaBERT training: its loss is the distillation loss summed over all widths.

    The teacher is the model before pruning; it is no submodule, so that checkpoints hold the student only.
    """

    accepts_loss_kwargs = False

    def __init__(
        self, student: PreTrainedModel, switch: Switch, teacher: PreTrainedModel, sizes: list[Size], labels: Labels
    ) -> None:
        super().__init__()
        self.student = student
        self._switch, self._sizes, self._labels = switch, sizes, labels
        self._teacher = (teacher.train(False).requires_grad_(False),)

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """The batch of the student model; labels only say which positions count."""
        inputs = self._labels.without(batch)
        teacher = self._teacher[0]
        with torch.no_grad(), recorded_states(teacher) as wanted:
            target = logits_of(teacher(**inputs))
        losses = []
        for size in self._sizes:
            self._switch.size = size
            with recorded_states(self.student) as states:
                logits = logits_of(self.student(**inputs))
            self._switch.size = None
            loss = soft_cross_entropy(logits, target, labelled(batch, self._labels), head_of_model(self.student).kind)
            losses.append(loss + REPRESENTATION_WEIGHT * squared_error(states, wanted, counted(batch)))
        return {"loss": torch.stack(losses).sum()}
