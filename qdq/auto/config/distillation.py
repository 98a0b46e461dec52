"""Sections Distillation and MultiTeacherDistillation: whose outputs are learned from, at which nodes, by which loss.

    Distillation:
      loss: [l2, soft_label]
      alpha: [1.0, 0.5]
      node: [[teacher_bert.encoder.layer.11, bert.encoder.layer.5], [classifier]]

A node is a module of the model by its path. One name, or X with teacher_X before it, is a pair: teacher and student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdq.auto.config.keys import mapping, section
from qdq.base.config import choice
from qdq.errors import ConfigError

LOSSES = ("l2", "soft_label", "fsp")
TEACHER = "teacher_"
# Names that PaddleSlim had in 2022
FORMER = {"distill_loss": "loss", "distill_node_pair": "node", "distill_lambda": "alpha"}
Nodes = tuple[str | tuple[str, ...], ...]


@dataclass(frozen=True)
class NodeLoss:
    """One loss between pairs (teacher's node, student's node); without pairs the output of the last weighted layer."""

    loss: str
    alpha: float
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Teacher:
    """A model to learn from: None is the given one."""

    model_dir: str | None
    model_filename: str | None
    params_filename: str | None
    losses: tuple[NodeLoss, ...]


@dataclass(frozen=True)
class Distillation:
    """One teacher. Lists of losses and alphas have one entry per list of nodes."""

    loss: str | tuple[str, ...] = "l2"
    alpha: float | tuple[float, ...] = 1.0
    node: Nodes = ()
    teacher_model_dir: str | None = None
    teacher_model_filename: str | None = None
    teacher_params_filename: str | None = None

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """The teacher with its losses. Raises ConfigError for lists of different lengths."""
        losses = node_losses(self.loss, self.alpha, self.node, "Distillation")
        files = (self.teacher_model_dir, self.teacher_model_filename, self.teacher_params_filename)
        return (Teacher(*files, losses),)

    def __post_init__(self) -> None:
        _ = self.teachers


@dataclass(frozen=True)
class MultiTeacherDistillation:
    """Several teachers: every key is a list with one entry per teacher; one loss and one alpha stand for all."""

    teacher_model_dir: tuple[str, ...]
    teacher_model_filename: str | tuple[str, ...] | None = None
    teacher_params_filename: str | tuple[str, ...] | None = None
    loss: str | tuple[str, ...] = "l2"
    alpha: float | tuple[float, ...] = 1.0
    node: tuple[Nodes, ...] = ()

    def __post_init__(self) -> None:
        if not self.teacher_model_dir:
            raise ConfigError("MultiTeacherDistillation: teacher_model_dir: is empty; name the teachers")
        _ = self.teachers

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """Every teacher with its losses. Raises ConfigError for lists of different lengths."""
        where, count = "MultiTeacherDistillation", len(self.teacher_model_dir)
        files, weights, losses, alphas = (
            spread(value, count, f"{where}: {name}", "teacher")
            for name, value in (
                ("teacher_model_filename", self.teacher_model_filename),
                ("teacher_params_filename", self.teacher_params_filename),
                ("loss", self.loss),
                ("alpha", self.alpha),
            )
        )
        nodes = spread(list(self.node), count, f"{where}: node", "teacher") if self.node else [()] * count
        rows = zip(self.teacher_model_dir, files, weights, losses, alphas, nodes, strict=True)
        return tuple(
            Teacher(folder, file, weight, node_losses(loss, alpha, node, where))
            for folder, file, weight, loss, alpha, node in rows
        )


def spread(value: Any, count: int, where: str, what: str) -> list[Any]:
    """One value per `what`, of which there are `count`: a list as it is, anything else repeated. Raises ConfigError."""
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ConfigError(f"{where}: has {len(value)} entries for {count} of {what}; give one for each")
    return list(value)


def node_losses(loss: Any, alpha: Any, node: Sequence[Any], where: str) -> tuple[NodeLoss, ...]:
    """The losses of one teacher. Raises ConfigError for lists of different lengths, unknown losses and odd pairs."""
    nested = any(not isinstance(entry, str) for entry in node)
    if nested and any(isinstance(entry, str) for entry in node):
        raise ConfigError(f"{where}: node: has names and lists of names beside each other; write lists only")
    groups: list[Any] = list(node) if nested else [node]
    several = [len(value) for value in (loss, alpha) if isinstance(value, (list, tuple))]
    # A flat list of nodes with a list of losses: one node per loss
    if not nested and several:
        pairs = paired(node, where)
        groups = [[f"{TEACHER}{teacher}", student] for teacher, student in pairs] or [()] * max(several)
    losses = spread(loss, len(groups), f"{where}: loss", "lists of nodes")
    alphas = spread(alpha, len(groups), f"{where}: alpha", "lists of nodes")
    made = []
    for name, weight, names in zip(losses, alphas, groups, strict=True):
        choice(name, LOSSES, f"{where}: loss")
        pairs = paired(names, where)
        if name == "fsp" and (len(pairs) < 2 or len(pairs) % 2):
            raise ConfigError(f"{where}: node: fsp compares the flow between two nodes; give two nodes, or four, …")
        made.append(NodeLoss(name, float(weight), pairs))
    return tuple(made)


def paired(names: Sequence[str], where: str) -> tuple[tuple[str, str], ...]:
    """(teacher's node, student's node) of every name: of X both, of teacher_X the one behind it is the student's."""
    found = []
    rest = list(names)
    while rest:
        name = rest.pop(0)
        if not name.startswith(TEACHER):
            found.append((name, name))
        elif rest and not rest[0].startswith(TEACHER):
            found.append((name.removeprefix(TEACHER), rest.pop(0)))
        else:
            raise ConfigError(f"{where}: node: behind {name} the node of the student is missing; write teacher_X, X")
    return tuple(found)


def read_distillation(values: Any, where: str) -> Distillation | MultiTeacherDistillation:
    """The section of either name, also under the names of 2022. Raises ConfigError."""
    given: Mapping[str, Any] = mapping({} if values is None else values, where)
    renamed: dict[str, Any] = {}
    for key, value in given.items():
        name = FORMER.get(key, key)
        if name in renamed:
            raise ConfigError(f"{where}: {name} is given twice, once as {key}; give one")
        renamed[name] = value
    if renamed.pop("merge_feed", True) is not True:
        raise ConfigError(f"{where}: merge_feed: teacher and student read the same batches; leave it out, or true")
    if where == "MultiTeacherDistillation":
        return section(MultiTeacherDistillation, renamed, where)
    return section(Distillation, renamed, where)
