"""The contestants of `qdq evaluate`: torch models, fake-quantized checkpoints, engine files, whole work directories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engines.targets import TARGETS, EngineOptions, target_of
from qdq.errors import ConfigError, ModelError
from qdq.loading.runner import TorchRunner
from qdq.loading.source import is_checkpoint
from qdq.pipeline.workdir import MANIFEST

if TYPE_CHECKING:
    from engines.types import Runner


Contestants = dict[str, Callable[[], "Runner"]]  # name on the screen -> its runner, opened one at a time


@dataclass(frozen=True)
class Own:
    """A class of the user's own that torch contestants are loaded with, and its task; nothing for transformers' own."""

    model_class: str | None = None
    task: str | None = None


def contestants(what: str, threads: int, hint: str, own: Own | None = None) -> Contestants:
    """The contestants `what` names.

    A hub id or folder is its torch model in floating point; a checkpoint/ of ours, fake-quantized; an .onnx, .xml or
    .plan file, that graph in ONNX Runtime, OpenVINO or TensorRT; a work directory, all of these that are in it. Raises
    ConfigError for a file of another kind.
    """
    place = Path(what).expanduser()
    if place.is_file():
        return {what: partial(_open_graph, place, threads, hint)}
    if (place / MANIFEST).is_file():
        return _of_work_directory(place, threads, hint, own or Own())
    if is_checkpoint(place):
        return {f"{what} (fake-quantized)": partial(_fake_quantized, place, threads, own or Own())}
    return {what: partial(_torch, what, threads, own or Own())}


def _of_work_directory(place: Path, threads: int, hint: str, own: Own) -> Contestants:
    checkpoint = place / "checkpoint"
    if not is_checkpoint(checkpoint):
        raise ConfigError(f"{place}: its run has not reached a checkpoint yet; run 'qdq compile' or 'qdq calibrate'")
    options = EngineOptions(threads, hint)
    engines = {
        name: partial(target.open, place / name / target.engine, options)
        for name, target in TARGETS.items()
        if (place / name / "build.json").is_file() and (place / name / target.engine).is_file()
    }
    return {
        "torch FP32": partial(_torch, str(checkpoint), threads, own),
        "fake-quantized": partial(_fake_quantized, checkpoint, threads, own),
        **engines,
    }


def model_for(what: str) -> str:
    """Hub id or folder whose tokenizer, task and classes fit `what`: itself, or the checkpoint it was built from.

    Raises ModelError for a graph that has none near it.
    """
    place = Path(what).expanduser()
    if (place / MANIFEST).is_file():
        return str(place / "checkpoint")
    if not place.is_file():
        return what
    for folder in list(place.resolve().parents)[:3]:
        for candidate in (folder / "checkpoint", folder):
            if (candidate / "config.json").is_file():
                return str(candidate)
    raise ModelError(f"{place}: no checkpoint beside it says its tokenizer and classes; name one with --model")


def _torch(name: str, threads: int, own: Own) -> TorchRunner:
    from qdq.loading.model import load_model

    return TorchRunner(load_model(name, own.task, model_class=own.model_class).module(), threads)


def _fake_quantized(folder: Path, threads: int, own: Own) -> TorchRunner:
    from qdq.calibrate.checkpoint import load_checkpoint

    return TorchRunner(load_checkpoint(folder, own.model_class)[0].module(), threads)


def _open_graph(path: Path, threads: int, hint: str) -> Runner:
    target = target_of(path)
    if target is None:
        endings = ", ".join(target.suffix for target in TARGETS.values())
        raise ConfigError(f"{path}: cannot be run; give a folder, a hub id, or a file ending in {endings}")
    return target.open(path, EngineOptions(threads, hint))
