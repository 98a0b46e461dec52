"""The repository of a text model: strings in, answers out, around the very engine file that was verified and timed."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.serving.answers import outputs_of
from engines.serving.form import CHANGEABLE, FILE, TOKENIZER, TextForm
from engines.serving.requests import inputs_of
from engines.targets import TARGETS
from engines.triton.interface import CONFIG_FILE, VERSION, external_data
from engines.triton.model_config import add_instances, add_queue, read_config, render, schema
from engines.triton.packed import packing_file, plan_model, write_plan
from engines.triton.repository import refuse_foreign
from engines.triton.settings import TritonSettings
from engines.triton.text.library import SERVING, library
from engines.triton.text.readme import meanings, text_files
from engines.types import BuiltEngine
from qdq.base.artifacts import atomic_folder, to_json
from qdq.errors import DeployError

TEMPLATE, MODEL, LIBRARY = Path(__file__).with_name("template.py"), "model.py", "lib"


def write_text_repository(
    engine: BuiltEngine, form: TextForm, tokenizer: str, settings: TritonSettings, folder: Path
) -> list[str]:
    """Write the model repository `folder` with the text model ``<settings.name>``, and check it before it appears.

    A plan gets a model of its own behind it. `tokenizer` is the text of its tokenizer.json. The repository is replaced
    as a whole; one that holds anything else is refused. Returns the names of the models. Raises DeployError (nothing is
    changed then), Unavailable without tritonclient.
    """
    plan = plan_model(settings.name) if TARGETS[form.engine].gpu else None
    refuse_foreign(folder, (settings.name, plan_model(settings.name)))
    files = _engine_files(engine)
    own = {} if plan else files
    if form_file := packing_file(engine):
        own = {**own, form_file.name: form_file}
    with atomic_folder(folder) as partial:
        _write(own, form, tokenizer, settings, partial / settings.name)
        _check(own, form, settings, partial / settings.name)
        if plan:
            write_plan(engine, settings, partial / plan)
    return [settings.name, *([plan] if plan else [])]


def text_config(form: TextForm, settings: TritonSettings) -> Any:  # an inference.ModelConfig message
    """The configuration of the text model: strings in, the task's outputs, and the queue policy.

    Without a warm-up: of strings from a file, Triton 2.51 was seen to hand over the first byte again and again. The
    model runs the sample of its form itself when it starts.
    """
    pb2, _ = schema()
    config = pb2.ModelConfig(
        name=settings.name, backend="python", default_model_filename=MODEL, max_batch_size=settings.max_batch_size
    )
    for item in inputs_of(form):
        config.input.add(
            name=item.name,
            data_type=pb2.DataType.Value("TYPE_STRING"),
            dims=item.dims,
            optional=item.optional,
            allow_ragged_batch=-1 in item.dims,  # requests of unequal many choices wait together
        )
    for output in outputs_of(form):
        config.output.add(name=output.name, data_type=pb2.DataType.Value(output.kind), dims=output.dims)
    add_queue(config, settings)
    add_instances(config, settings.instances, gpu=False)
    for name in CHANGEABLE:
        config.parameters[name].string_value = str(getattr(form, name))
    return config


def _engine_files(engine: BuiltEngine) -> dict[str, Path]:
    """Engine files by name in the version folder: their own names, which refer to each other."""
    files = {file.name: file for file in engine.files}
    for file in engine.files:
        if file.suffix == ".onnx":
            files |= {name: file.parent / name for name in external_data(file)}
    missing = next((file for file in files.values() if not file.is_file()), None)
    if missing is not None:
        raise DeployError(f"engine file {missing} is missing; build the engine again")
    return files


def _modules(form: TextForm) -> dict[str, Path]:
    engine = () if TARGETS[form.engine].gpu else (f"engines.{form.engine}",)
    return library((SERVING, *engine))


def _write(files: Mapping[str, Path], form: TextForm, tokenizer: str, settings: TritonSettings, model: Path) -> None:
    version = model / VERSION
    version.mkdir(parents=True)
    for name, source in {**files, MODEL: TEMPLATE}.items():
        shutil.copyfile(source, version / name)
    for name, source in _modules(form).items():
        (version / LIBRARY / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, version / LIBRARY / name)
    (version / FILE).write_text(to_json(form.as_json()), encoding="utf-8")
    (version / TOKENIZER).write_text(tokenizer, encoding="utf-8")
    for name, text in text_files(form, settings).items():
        (model / name).write_text(text, encoding="utf-8")
    (model / CONFIG_FILE).write_text(
        render(text_config(form, settings), (*meanings(form), *settings.about)), encoding="utf-8"
    )


def _check(files: Mapping[str, Path], form: TextForm, settings: TritonSettings, model: Path) -> None:
    """Read the model back. Raises DeployError naming the first difference."""
    if read_config(model / CONFIG_FILE) != text_config(form, settings):
        raise DeployError(f"{model / CONFIG_FILE} is not this model's configuration; write the repository again")
    if TextForm.read(model / VERSION / FILE) != form:
        raise DeployError(f"{model / VERSION / FILE} is not this model's form; write the repository again")
    for name, source in files.items():
        if not filecmp.cmp(source, model / VERSION / name, shallow=False):
            raise DeployError(f"{model / VERSION / name} is not {source}; write the repository again")
