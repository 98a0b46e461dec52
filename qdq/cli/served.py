"""The engine behind a served model of a work directory: opened from the file that the server itself opens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.serving.form import TOKEN_LEVEL
from engines.targets import TARGETS, EngineOptions
from qdq.base.artifacts import read_json
from qdq.base.choices import RAW_REPOSITORY, REPOSITORY
from qdq.errors import ConfigError

if TYPE_CHECKING:
    from engines.types import Runner
    from qdq.loading.model import LoadedModel

FORM, CONFIG = "text.json", "config.pbtxt"  # of a text model, in its version folder; of every model
THREADS = ("intra_op_thread_count", "INFERENCE_NUM_THREADS")  # parameters of Triton's own CPU backends
LONGEST = 512  # tokens of a row for a raw model that takes any length


@dataclass(frozen=True)
class Served:
    """A served model: its checkpoint, its engine, and how its answers are made of the engine's outputs.

    Attributes:
        file: of the engine.
        text: it takes text, else token ids, [B, `width`] where that is fixed.
        sequence: most tokens of a row.
        by_token: the engine's outputs have a row per token.
        states: they do, and a text model answers their mean, of length 1 where `normalized`.
        scores: the values of its logits are no classes.
        labels: of a text model's classes.
    """

    loaded: LoadedModel
    runner: Runner
    file: Path
    text: bool
    sequence: int
    width: int | None
    by_token: bool
    states: bool
    normalized: bool
    scores: bool
    labels: tuple[str, ...]


def open_served(work: Path, name: str, text: bool) -> Served:
    """The model `name` of a work directory, or of its folder of one target, in the repository for texts or the raw one.

    Raises ConfigError when there is no such repository, ModelError and BuildError as loading does.
    """
    from qdq.calibrate.checkpoint import read_spec
    from qdq.loading.model import load_model

    model = _folder(work, name, text)
    checkpoint = next(folder / "checkpoint" for folder in model.parents if (folder / "checkpoint").is_dir())
    loaded = load_model(str(checkpoint), task=read_spec(checkpoint)[1]["task"])
    return _texts(model / "1", loaded) if text else _token_ids(model, loaded)


def _texts(version: Path, loaded: LoadedModel) -> Served:
    form = read_json(version / FORM)
    file = version / form["files"][0]
    runner = TARGETS[form["engine"]].open(file, EngineOptions(form["threads"], form["hint"]))
    return Served(
        loaded,
        runner,
        file,
        text=True,
        sequence=form["sequence"],
        width=None,
        by_token=form["task"] in TOKEN_LEVEL,
        states=not form["pooled"],
        normalized=form["normalized"],
        scores=form["head"] == "scores",
        labels=tuple(form["labels"]),
    )


def _token_ids(model: Path, loaded: LoadedModel) -> Served:
    """The model of a raw repository, with the options that Triton's backend of its runtime takes from config.pbtxt."""
    from engines.openvino.build import has_bf16
    from engines.triton.model_config import read_config
    from qdq.tasks.heads import head_of_model

    config = read_config(model / CONFIG)
    if config.backend not in TARGETS:
        raise ConfigError(f"{model}: no engine of ours for the backend '{config.backend}'; check the text repository")
    threads = next((int(config.parameters[key].string_value) for key in THREADS if key in config.parameters), 0)
    # Triton's openvino backend has no parameter for it, so floats are what OpenVINO takes by default
    hint = {"openvino": "bf16"}.get(config.backend, "f32") if has_bf16() else "f32"
    file = model / "1" / config.default_model_filename
    runner = TARGETS[config.backend].open(file, EngineOptions(threads, hint))
    fixed = config.input[0].dims[-1]
    longest = min(loaded.max_sequence, int(loaded.tokenizer.model_max_length), LONGEST)
    return Served(
        loaded,
        runner,
        file,
        text=False,
        sequence=fixed if fixed > 0 else longest,
        width=fixed if fixed > 0 else None,
        by_token=loaded.task.name in (*TOKEN_LEVEL, *(["feature-extraction"] if loaded.pooling is None else [])),
        states=False,
        normalized=False,
        scores=head_of_model(loaded.model).kind == "scores",
        labels=(),
    )


def _folder(work: Path, name: str, text: bool) -> Path:
    """The folder of the model `name` in a work directory. Raises ConfigError for none, or several."""
    names = (REPOSITORY,) if text else (RAW_REPOSITORY, REPOSITORY)
    known: Mapping[Path, Any] = {
        path: None
        for repository in names
        for pattern in (f"{repository}/{name}", f"*/{repository}/{name}")
        for path in work.glob(pattern)
        if (path / "1" / FORM).is_file() == text
    }
    found, kind = list(known), "a text model" if text else "a model of token ids"
    if not found:
        more = "" if text else " --raw-inputs"
        raise ConfigError(f"--check {work}: has no repository of {kind} '{name}'; run 'qdq deploy --out {work}{more}'")
    if len(found) > 1:
        folders = ", ".join(str(path.parents[1]) for path in found)
        raise ConfigError(f"--check {work}: several targets have '{name}'; name the one that is served: {folders}")
    return found[0]
