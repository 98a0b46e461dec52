"""The best model that a training passes through: evaluated at its start and before every checkpoint, kept there.

PaddleNLP's API does the same: its `save_steps` are the steps between two evaluations, and it keeps the best model. The
evaluation data selects here, so a metric on it is that of a selected model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from qdq.base.artifacts import atomic_path, write_json
from qdq.compress.method import Session

STOPPED = "stopped.json"  # in the folder of a training that ended before its last step


@dataclass(frozen=True)
class Best:
    """A model's state at the step where its metric was the highest."""

    step: int
    metric: float
    state: Mapping[str, Tensor]


class KeepBest(TrainerCallback):
    """Evaluates models whenever a checkpoint is about to be written, and keeps the best state of each.

    Args:
        session: evaluates; every rank does, and the first one writes.
        folder: where the states are kept for a run that continues.
        models: name -> function that returns the model as it is now.
    """

    def __init__(self, session: Session, folder: Path, models: Mapping[str, Callable[[], nn.Module]]) -> None:
        self._session, self._folder, self._models = session, folder, models
        self._found: dict[str, Best] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the model as given as the first to beat; a run that continues takes over the best so far."""
        if not state.global_step:
            self._evaluate(0)
        else:
            self.recall()

    def recall(self) -> None:
        """Take over the best models of an earlier run."""
        paths = {name: self._path(name) for name in self._models}
        self._found = {name: _read(path) for name, path in paths.items() if path.is_file()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate before the checkpoint, so that a run that continues from it has not missed this evaluation."""
        if control.should_save:
            metrics = self._evaluate(state.global_step)
            recipe = self._session.recipe
            if recipe and all(recipe.enough(metric, self._found[name].metric) for name, metric in metrics.items()):
                control.should_training_stop = True
                if self._session.trainer.is_world_process_zero():
                    write_json(self._folder / STOPPED, {"step": state.global_step, "metrics": metrics})

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Do the same for a checkpoint per epoch."""
        self.on_step_end(args, state, control)

    def restore(self, name: str, model: nn.Module) -> int | None:
        """Give `model` its best state; returns the step it is from, None when the training never came to save."""
        found = self._found.get(name)
        if found is None:
            return None
        model.load_state_dict(dict(found.state))
        return found.step

    def _evaluate(self, step: int) -> dict[str, float]:
        """The metric of every model now."""
        metrics: dict[str, float] = {}
        for name, current in self._models.items():
            model = current()
            metrics[name] = metric = float(self._session.evaluate(model))
            if name not in self._found or metric >= self._found[name].metric:  # of equals the longer trained
                state = {
                    key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                    for key, tensor in model.state_dict().items()
                }
                self._found[name] = Best(step, metric, state)
                if self._session.trainer.is_world_process_zero():
                    with atomic_path(self._path(name)) as partial:
                        save_file(state, str(partial), {"step": str(step), "metric": repr(metric)})
        self._session.screen.row(f"step {step}", ", ".join(f"{name} {metric:.4f}" for name, metric in metrics.items()))
        return metrics

    def _path(self, name: str) -> Path:
        return self._folder / f"best-{name}.safetensors"


def _read(path: Path) -> Best:
    with safe_open(str(path), "pt") as file:
        known = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        return Best(int(known["step"]), float(known["metric"]), state)
