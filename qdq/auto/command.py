"""A configuration file run as `qdq auto` and the example scripts do: model, data and task are those of its Global."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdq.auto.config import Configuration, read_config
from qdq.auto.default import STEPS_OF_DEFAULT, default_configuration
from qdq.auto.graph import File, run_graph, score_file
from qdq.auto.inputs.data import read_rows
from qdq.auto.inputs.models import Source, find_model
from qdq.auto.session import Materials, check_origin, open_session
from qdq.auto.strategy import Result, run_strategies
from qdq.base.screen import Screen
from qdq.errors import ConfigError
from qdq.inject.widths import blocks
from qdq.loading.kinds import Task, detect_task
from qdq.loading.model import load_model
from qdq.loading.source import read_config as read_model_config


@dataclass(frozen=True)
class OfFile:
    """Facts that data need to know of an ONNX file's model, from the config.json and the tokenizer beside it.

    The same names as `qdq.loading.model.LoadedModel`; `model` has no weights.
    """

    model: Any
    tokenizer: Any
    task: Task
    name: str
    inputs: tuple[str, ...]
    labels: tuple[str, ...]


def run_file(path: str | Path, save_dir: str | Path, screen: Screen, task: str | None = None) -> Result:
    """Run a configuration file; everything that is made lies below `save_dir`.

    Without strategies it is `qdq.auto.default`. `task`: what the model has to be for. Raises ConfigError and DataError
    for everything that is wrong, before any training.
    """
    configuration = read_config(path, needs_model=True)
    default = not configuration.strategies
    found = _open(configuration, Path(save_dir), task, trains=configuration.trains or default)
    if isinstance(found, File):
        return run_graph(configuration, found, screen)
    if default:
        configuration = default_configuration(configuration, blocks(found.model)[0].heads, None)
        return run_strategies(configuration, found, screen, STEPS_OF_DEFAULT)
    return run_strategies(configuration, found, screen)


def evaluate_file(path: str | Path, screen: Screen, task: str | None = None) -> Mapping[str, float]:
    """Score the model of a configuration file as it is, on the rows that would decide; nothing is written.

    Returns the metrics by name, the one that decides first. Raises as `run_file`, also for another origin_metric.
    """
    configuration = read_config(path, needs_model=True)
    configuration = Configuration(configuration.model, configuration.train, where=configuration.where)
    found = _open(configuration, Path(), task, trains=False)
    if isinstance(found, File):
        metric: Any = score_file(found)
    else:
        session = open_session(configuration, found, screen)
        metric = session.evaluate(session.model)
    check_origin(configuration, float(metric))
    return dict(getattr(metric, "metrics", {})) or {"metric": float(metric)}


def _open(configuration: Configuration, save_dir: Path, task: str | None, trains: bool) -> Materials | File:
    """The model and data of a configuration's Global."""
    options = configuration.model
    assert options is not None  # read with needs_model
    where = f"{configuration.where}: Global"
    source = find_model(options.model_dir, options.model_filename, options.params_filename, f"{where}: model_dir")
    loaded: Any = _of_file(source, where) if source.onnx else load_model(source.name)
    if task is not None and loaded.task.name != task:
        raise ConfigError(f"{where}: model_dir: {source.name} is a model for {loaded.task.name}, not for {task}")
    try:
        rows = read_rows(options, loaded, trains)
    except ConfigError as error:
        raise ConfigError(f"{configuration.where}: {error}") from error
    if source.onnx:
        return File(source, loaded.tokenizer, rows, save_dir)
    return Materials(loaded.model, loaded.tokenizer, rows, save_dir, source)


def _of_file(source: Source, where: str) -> OfFile:
    """Labels and tokenizer of an ONNX file. Raises ConfigError where they do not lie beside it."""
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from qdq.compress.onnx_file import OnnxModule, read_graph

    folder = Path(source.name).parent
    if not (folder / "config.json").is_file() or not (folder / "tokenizer_config.json").is_file():
        raise ConfigError(
            f"{where}: model_dir: {source.name} needs config.json and its tokenizer beside it, which say how text and "
            "classes are read; copy them from the checkpoint"
        )
    task = detect_task(read_model_config(folder).get("architectures"), str(folder))
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = task.auto().from_config(config)
    names = tuple(config.id2label[index] for index in range(config.num_labels)) if task.name.startswith("text") else ()
    inputs = OnnxModule(read_graph(Path(source.name))).inputs
    return OfFile(model, AutoTokenizer.from_pretrained(folder), task, folder.name, inputs, names)
