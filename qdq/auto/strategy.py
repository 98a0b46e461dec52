"""A configured run: the given model is checked, the steps follow one another, the last model is written."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from qdq.auto.config import Configuration
from qdq.auto.default import ALL_STEPS
from qdq.auto.inputs.models import find_model
from qdq.auto.output import write_model
from qdq.auto.session import Materials, check_origin, open_session
from qdq.auto.steps import Step, check
from qdq.auto.training.distance import Distance, Taught
from qdq.auto.training.finished import Finished, inputs_of
from qdq.auto.training.recipe import TrainingRecipe
from qdq.base.artifacts import sweep_partials, write_json
from qdq.base.lock import hold
from qdq.base.screen import Screen
from qdq.compress.method import CompressedModel, Session
from qdq.compress.training import fingerprint
from qdq.errors import ConfigError
from qdq.loading.model import load_model

REPORT = "auto_compression.json"


@dataclass(frozen=True)
class Result:
    """Outcome of a run: the final model in `folder`, its metric, and that of the model as given."""

    baseline: float
    metric: float
    folder: Path
    steps: tuple[Mapping[str, Any], ...]
    model: nn.Module

    def as_json(self) -> dict[str, Any]:
        """The content of auto_compression.json."""
        return {"baseline": self.baseline, "metric": self.metric, "steps": list(self.steps)}


def run_strategies(
    configuration: Configuration, materials: Materials, screen: Screen | None = None, steps: Sequence[str] = ()
) -> Result:
    """Run every configured step, or `steps`; the final model and auto_compression.json lie in ``save_dir``.

    A run that was killed continues where it was. Raises ConfigError, DataError and ModelError, before any training,
    for everything that cannot work: widths, nodes, teachers, an origin_metric that the given model does not have; and
    WorkError while another run works in the folder.
    """
    session = open_session(configuration, materials, screen or Screen())
    check(Step(configuration, materials, session))
    if not session.trainer.is_world_process_zero():  # the first process holds the folder for all
        return _run(configuration, materials, session, steps)
    with hold(materials.save_dir, "another qdq auto"):
        sweep_partials(materials.save_dir)
        return _run(configuration, materials, session, steps)


def _run(configuration: Configuration, materials: Materials, session: Session, steps: Sequence[str]) -> Result:
    loss = _loss(configuration, session) if configuration.trains else None
    with session.screen.stage("evaluate") as stage:
        session.baseline = float(session.evaluate(session.model))
        stage.say(f"{session.baseline:.4f} before compression")
    check_origin(configuration, session.baseline)
    inputs = inputs_of(configuration, materials.rows, fingerprint(session.model), session.baseline)
    finished = Finished(materials.save_dir, inputs, shared=session.trainer.args.world_size > 1)
    # The steps, each from the model of the one before
    made = CompressedModel("", session.model, metric=session.baseline)
    rows, names = [], tuple(steps or configuration.strategies)
    for number, name in enumerate(names):
        last = number > 0 and name != "distill"
        recipe = None if loss is None else TrainingRecipe(configuration.training, loss, session.baseline, last)
        step = Step(configuration, materials, replace(session, recipe=recipe), last, finished)
        kept = finished.model(name, made, session.model.device)
        if kept is not None:
            session.screen.row(name, f"{kept.metric:.4f}, finished earlier")
        made = kept or ALL_STEPS[name](step, made)
        if kept is None and number + 1 < len(names):
            finished.keep_model(name, made, session)
        rows.append({"step": name, "name": made.name, "metric": made.metric, "notes": dict(made.notes)})
    # The result
    result = Result(session.baseline, float(made.metric or 0.0), materials.save_dir, tuple(rows), made.model)
    if session.trainer.is_world_process_zero():
        write_model(session, made, materials.source, materials.save_dir)
        write_json(materials.save_dir / REPORT, result.as_json())
    session.screen.row("result", f"{result.metric:.4f}, {result.baseline:.4f} before: {result.folder}")
    return result


def _loss(configuration: Configuration, session: Session) -> Distance:
    """The distance from the configured teachers, tried on one batch. Raises ConfigError, ModelError."""
    section = configuration.distillation
    assert section is not None and session.train is not None  # both are checked before
    name = type(section).__name__
    taught = []
    for teacher in section.teachers:
        model, where = session.model, "the given model"
        if teacher.model_dir is not None:
            files = (teacher.model_filename, teacher.params_filename)
            model, where = _teacher(teacher.model_dir, *files, f"{configuration.where}: {name}"), teacher.model_dir
        frozen: nn.Module = copy.deepcopy(model).train(False).requires_grad_(False)
        frozen.to(session.model.device)
        taught.append(Taught(where, frozen, teacher.losses))
    distance = Distance(tuple(taught), session.eval.labels)
    try:
        distance.check(session.model, next(iter(session.train)))
    except ConfigError as error:
        raise ConfigError(f"{configuration.where}: {name}: {error}") from error
    return distance


def _teacher(folder: str, model_filename: str | None, params_filename: str | None, where: str) -> Any:
    found = find_model(folder, model_filename, params_filename, f"{where}: teacher_model_dir")
    if found.onnx:
        raise ConfigError(f"{where}: teacher_model_dir: {found.name} is an ONNX file; name a checkpoint folder")
    return load_model(found.name).model
