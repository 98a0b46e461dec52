"""One training inside a compression: transformers' Trainer on a module with its own loss, resumed after a kill."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from qdq.base.artifacts import write_json
from qdq.base.screen import Screen
from qdq.compress.best import STOPPED, KeepBest
from qdq.compress.datasets import LengthGrouped, digest_of, lengths_of
from qdq.compress.method import Session
from qdq.errors import ConfigError

CHECKPOINTS_KEPT = 2  # the newest may be half-written when the run is killed
# What decides the numbers of a training; a run that differs in one of these must not continue from its checkpoints.
DECIDING = (
    *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "lr_scheduler_type", "warmup_ratio"),
    *("warmup_steps", "seed", "optim", "train_sampling_strategy", "save_strategy", "save_steps"),
)


class LossTrainer(Trainer):
    """Trains a module whose forward returns {"loss": ...}; `ranges` get a learning rate of their own."""

    def __init__(self, module: nn.Module, session: Session, folder: Path, range_rate: float) -> None:
        args = copy.copy(session.args)  # not dataclasses.replace, which would set the accelerator up again
        args.output_dir = str(folder)
        args.remove_unused_columns = False  # the collator does
        args.load_best_model_at_end = False
        args.save_total_limit = CHECKPOINTS_KEPT
        assert session.train is not None  # checked before any method runs
        super().__init__(module, args, session.train.collate, session.train.dataset)
        self.range_rate, self.recipe = range_rate, session.recipe

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Trainer's optimizer, and a group for the learnable ranges among the parameters."""
        module: nn.Module = self.model if model is None else model  # type: ignore[assignment]  # never None here
        if self.recipe is not None:
            self.optimizer = self.recipe.optimizer(self._groups(module))
            return self.optimizer
        ranges = [parameter for name, parameter in module.named_parameters() if name.endswith("clip")]
        for parameter in ranges:
            parameter.requires_grad_(False)
        optimizer = super().create_optimizer(model)
        for parameter in ranges:
            parameter.requires_grad_(True)
        if ranges and len(optimizer.param_groups) == 2:
            rate = self.args.learning_rate * self.range_rate
            optimizer.add_param_group({"params": ranges, "weight_decay": 0.0, "lr": rate})
        return optimizer

    def _groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Weights, and learnable ranges without decay, with the factors of their learning rates."""
        trained = {name: one for name, one in module.named_parameters() if one.requires_grad}
        weights = [one for name, one in trained.items() if not name.endswith("clip")]
        ranges = [one for name, one in trained.items() if name.endswith("clip")]
        groups: list[dict[str, Any]] = [{"params": weights, "lr": 1.0}]
        if ranges:
            groups.append({"params": ranges, "lr": self.range_rate, "weight_decay": 0.0})
        return groups

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Trainer's schedule, or the recipe's."""
        if self.recipe is None:
            return super().create_scheduler(num_training_steps, optimizer)
        owner: Any = self.optimizer if optimizer is None else optimizer
        self.lr_scheduler = self.recipe.scheduler(owner)
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """`LengthGrouped` for train_sampling_strategy=group_by_length."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lengths = lengths_of(self.train_dataset if train_dataset is None else train_dataset)
        return LengthGrouped(lengths, self.args.train_batch_size, self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Tensors only: a shared parameter is stored once, and nothing is pickled."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        assert self.model is not None
        save_model(self.model, str(folder / "model.safetensors"))


class LossLines(TrainerCallback):
    """Shows the loss on the screen, where the other lines of a run are."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the loss since the last line."""
        if "loss" in kwargs["logs"]:
            self._screen.row(f"step {state.global_step}", f"loss {float(kwargs['logs']['loss']):.4g}")


def train(
    session: Session,
    module: nn.Module,
    folder: Path,
    deciding: dict[str, Any],
    range_rate: float = 1.0,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train `module` in place on the session's training data, from its newest whole checkpoint if there is one.

    `deciding` is what shapes this training beyond the arguments. Raises ConfigError when `folder` holds checkpoints of
    a run that was something else.
    """
    _claim(session, folder, deciding)
    found = newest_checkpoint(folder)
    keepers = [callback for callback in callbacks if isinstance(callback, KeepBest)]
    if found is not None and (folder / STOPPED).is_file():  # an earlier run has ended this training
        for keeper in keepers:
            keeper.recall()
        module.train(False)
        return
    trainer = LossTrainer(module, session, folder, range_rate)
    if session.recipe is not None:  # standard output is for the result of `qdq auto`
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(LossLines(session.screen))
    for callback in (*callbacks, *(session.recipe.callbacks() if session.recipe else ())):
        trainer.add_callback(callback)
    with without_dropout(module):
        trainer.train(resume_from_checkpoint=None if found is None else str(found))
    module.train(False)


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Train without dropout: students learn what a teacher computes without it, which more noise only delays; and it
    widens activations by 1 / (1 - p), so ranges would follow what inference never sees.
    """
    kept = [(part, part.p) for part in module.modules() if isinstance(part, nn.Dropout)]
    try:
        for part, _ in kept:
            part.p = 0.0
        yield
    finally:
        for part, p in kept:
            part.p = p


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose last-written file is whole."""
    numbered = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for path in sorted(numbered, key=lambda path: -int(path.name.rpartition("-")[2])):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
            return path
        except (OSError, ValueError):
            continue
    return None


def _claim(session: Session, folder: Path, deciding: dict[str, Any]) -> None:
    """Write what this training is, or check that the folder's checkpoints are of the same."""
    values = {name: str(getattr(session.args, name)) for name in DECIDING}
    assert session.train is not None
    values |= {name: str(value) for name, value in (session.recipe.deciding if session.recipe else {}).items()}
    values |= {"training data": digest_of(session.train.dataset), "evaluation data": digest_of(session.eval.dataset)}
    values |= {key: str(value) for key, value in deciding.items()}
    record = folder / "training.json"
    if newest_checkpoint(folder) is not None and record.is_file():
        earlier = json.loads(record.read_text(encoding="utf-8"))
        changed = sorted(name for name in {*values, *earlier} if values.get(name) != earlier.get(name))
        if changed:
            raise ConfigError(
                f"{folder}: holds checkpoints of a training with another {', '.join(changed)}; give another "
                "output_dir, or remove this folder"
            )
    if session.trainer.is_world_process_zero():
        write_json(record, values)


def fingerprint(module: nn.Module) -> str:
    """Short hash of a module's parameters, ranges and treatments, to recognise what a training started from."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
