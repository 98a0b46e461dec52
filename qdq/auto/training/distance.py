"""The loss of a student: its distance from one or several teachers, at their outputs or at chosen nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qdq.auto.config.distillation import NodeLoss
from qdq.base.config import nearest
from qdq.compress.datasets import Labels
from qdq.compress.distillation import (
    LEAST,
    counted,
    labelled,
    logit_error,
    soft_cross_entropy,
    squared_error,
)
from qdq.compress.evaluators import logits_of
from qdq.errors import ConfigError
from qdq.tasks.heads import head_of_model


@dataclass(frozen=True)
class Taught:
    """A teacher, in eval mode and frozen, with what is learned from it; `name` is for messages."""

    name: str
    model: nn.Module
    losses: tuple[NodeLoss, ...]


@contextmanager
def recorded(model: nn.Module, nodes: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of the named modules of each forward in the block; the first tensor of those that return several."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            found[name] = output if isinstance(output, Tensor) else output[0]

        return after

    with ExitStack() as hooks:
        for name in nodes:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(keep(name)))
        yield found


@dataclass(frozen=True)
class Distance:
    """``distance(student, batch)``: the sum of every loss times its alpha, over all teachers."""

    teachers: tuple[Taught, ...]
    labels: Labels

    def __call__(self, student: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """A scalar; the batch's labels only say which positions count."""
        inputs = self.labels.without(batch)
        nodes = [node for one in self.teachers for loss in one.losses for _, node in loss.pairs]
        with recorded(student, nodes) as states:
            logits = logits_of(student(**inputs))
        parts = []
        for one in self.teachers:
            with (
                torch.no_grad(),
                recorded(one.model, [node for loss in one.losses for node, _ in loss.pairs]) as wanted,
            ):
                target = logits_of(one.model(**inputs))
            for loss in one.losses:
                if loss.pairs:
                    value = self._at_nodes(loss, states, wanted, batch)
                else:
                    value = _at_outputs(loss.loss, logits, target, labelled(batch, self.labels), student)
                parts.append(loss.alpha * value)
        return torch.stack(parts).sum()

    def _at_nodes(
        self, loss: NodeLoss, states: Mapping[str, Tensor], wanted: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> Tensor:
        """One loss of every pair of nodes, summed."""
        pairs = [(states[student], wanted[teacher]) for teacher, student in loss.pairs]
        mask = counted(batch)
        if loss.loss == "l2":
            return squared_error([one for one, _ in pairs], [other for _, other in pairs], mask)
        if loss.loss == "soft_label":
            return torch.stack([soft_cross_entropy(one, other, mask) for one, other in pairs]).sum()
        flows = []
        for first, second in zip(pairs[::2], pairs[1::2], strict=True):
            flow = [flow_between(one, other, mask) for one, other in zip(first, second, strict=True)]
            flows.append((flow[0] - flow[1]).square().mean())
        return torch.stack(flows).sum()

    def check(self, student: nn.Module, batch: Mapping[str, Tensor]) -> None:
        """Raise ConfigError for a node that a model does not have, and for pairs whose shapes differ."""
        inputs = self.labels.without(batch)
        for one in self.teachers:
            for model, whose, side in ((one.model, one.name, 0), (student, "the student", 1)):
                for name in {pair[side] for loss in one.losses for pair in loss.pairs}:
                    _check_node(model, name, whose)
            # One forward of both
            pairs = [pair for loss in one.losses for pair in loss.pairs]
            with torch.no_grad():
                with recorded(student, [node for _, node in pairs]) as states:
                    output = logits_of(student(**inputs))
                with recorded(one.model, [node for node, _ in pairs]) as wanted:
                    target = logits_of(one.model(**inputs))
            if _shapes(output) != _shapes(target):
                raise ConfigError(
                    f"{one.name}: its outputs are {_shapes(target)} and the model's {_shapes(output)}; a teacher has "
                    "the task and the classes of its student"
                )
            for teacher, name in pairs:
                if states[name].shape != wanted[teacher].shape:
                    raise ConfigError(
                        f"node: {name} is {list(states[name].shape)} and the teacher's {teacher} "
                        f"{list(wanted[teacher].shape)}; name nodes of one size"
                    )


def flow_between(first: Tensor, second: Tensor, mask: Tensor | None) -> Tensor:
    """The FSP matrix [B, H, K] of states [B, S, H] and [B, S, K]: their products, averaged over counted positions.

    Source: Yim et al., "A Gift from Knowledge Distillation" (CVPR 2017), where positions are those of a picture.
    """
    if first.dim() == 2:
        return first[:, :, None] * second[:, None, :]
    counts = torch.ones(first.shape[:2], device=first.device) if mask is None else mask.to(first.dtype)
    total = torch.einsum("bsh,bsk->bhk", first * counts[..., None], second)
    return total / counts.sum(1).clamp(min=1)[:, None, None]


def _at_outputs(loss: str, logits: Any, target: Any, counts: Tensor | None, student: nn.Module) -> Tensor:
    """A loss between the outputs of the last weighted layer."""
    kind = head_of_model(student).kind
    if loss == "soft_label":
        return soft_cross_entropy(logits, target, counts, kind)
    if kind == "marks":  # probabilities: the layer gives their logits
        logits, target = (tuple(torch.logit(one, LEAST) for one in side) for side in (logits, target))
    return logit_error(logits, target, counts)


def _check_node(model: nn.Module, name: str, whose: str) -> None:
    known = dict(model.named_modules())
    if name not in known or not name:
        close = nearest(name, known).split("(valid")[0].strip()
        raise ConfigError(f"node: {whose} has no module '{name}'; {close or 'see named_modules() of the model'}")


def _shapes(output: Any) -> list[list[int]]:
    return [list(one.shape) for one in (output if isinstance(output, tuple) else (output,))]
