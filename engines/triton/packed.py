"""The repository of a plan whose batch is not padded: the plan, and in front of it a model that packs requests."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from engines import packing
from engines.packed import packing_beside
from engines.packing import Packing
from engines.targets import TARGETS
from engines.triton.interface import CONFIG_FILE, LABELS_FILE, VERSION, WARMUP_FOLDER, dims, served_files
from engines.triton.model_config import build_config, read_config, render
from engines.triton.readme import write_readme
from engines.triton.settings import TritonSettings
from engines.triton.warmup import warmup_samples
from engines.types import BuiltEngine, TensorInfo
from qdq.errors import DeployError

GRAPHS = (1, 2, 4, 8, 16, 32, 64)  # batch sizes with a CUDA graph, beside the largest
TEMPLATE, MODEL = Path(__file__).with_name("packed_template.py"), "model.py"
IDS = Path(__file__).with_name("ids.py")


def plan_model(name: str) -> str:
    """Name of the plan's model behind the model `name`; packed_template.py forms it alike."""
    return f"{name}_plan"


def form_of(engine: BuiltEngine) -> Packing | None:
    """The form of an engine's batch, None for a padded one. Raises BuildError when packing.json cannot be read."""
    return packing_beside(engine.files[0]) if engine.files else None


def packing_file(engine: BuiltEngine) -> Path | None:
    """packing.json beside a plan whose batch is not padded."""
    file = engine.files[0].with_name(packing.FILE)
    return file if TARGETS[engine.target].gpu and file.is_file() else None


def write_plan(engine: BuiltEngine, settings: TritonSettings, model: Path) -> None:
    """Write the plan's own model, which takes each request as it is: the model in front forms the batches."""
    (model / VERSION).mkdir(parents=True)
    for name, source in served_files(engine, "tensorrt").items():
        shutil.copyfile(source, model / VERSION / name)
    config = plan_config(engine, settings)
    if settings.buckets:
        add_profiles(config, engine, settings)
    (model / CONFIG_FILE).write_text(render(config), encoding="utf-8")
    if read_config(model / CONFIG_FILE) != config:
        raise DeployError(f"{model / CONFIG_FILE} is not this engine's configuration; write the repository again")


def add_profiles(config: Any, engine: BuiltEngine, settings: TritonSettings) -> None:
    """Let a plan with a profile for each bucket (behind the one of all shapes) run each length on its own.

    A bucket's batches have one length, so each batch size in GRAPHS is one CUDA graph, launched as a whole; others run
    as they are. No lower bounds: rows that are not there would be read as ids, and could be any number.
    """
    (group,) = config.instance_group
    group.profile.extend(str(number) for number in range(1, 1 + len(settings.buckets)))
    if any(len(info.shape) != 2 for info in engine.inputs):  # of multiple choice the number of choices varies, too
        return
    cuda = config.optimization.cuda
    cuda.graphs = True
    for length in settings.buckets:
        for size in (*(size for size in GRAPHS if size < settings.max_batch_size), settings.max_batch_size):
            spec = cuda.graph_spec.add(batch_size=0)  # the batch is part of the dims, as max_batch_size 0 wants it
            for info in engine.inputs:
                spec.input[info.name].dim.extend((size, length))


def plan_config(engine: BuiltEngine, settings: TritonSettings) -> Any:
    """Configuration of the plan's own model: its first axes are rows and texts, or the batch another model formed."""
    inner = replace(settings, name=plan_model(settings.name), backend="tensorrt", labels=(), cache=False, tables={})
    plan = build_config(engine, inner, next(iter(served_files(engine, "tensorrt"))), [])
    plan.max_batch_size = 0
    plan.ClearField("dynamic_batching")
    for tensor, info in zip((*plan.input, *plan.output), (*engine.inputs, *engine.outputs), strict=True):
        del tensor.dims[:]
        tensor.dims.extend(dims(info, batched=False))
    return plan


def write_models(
    engine: BuiltEngine, form: Packing, settings: TritonSettings, warmup: Mapping[str, NDArray[Any]], folder: Path
) -> None:
    """Write ``<folder>/<settings.name>/`` (python backend, padded inputs) and ``<folder>/<settings.name>_plan/``.

    `warmup` is a real sample of the padded inputs. Raises DeployError when it does not fit, or a file of the engine is
    missing.
    """
    configs = _configs(engine, form, settings, warmup)
    for (name, files), config in zip(_files(engine, settings).items(), configs, strict=True):
        (folder / name / VERSION).mkdir(parents=True)
        for file, source in files.items():
            shutil.copyfile(source, folder / name / VERSION / file)
        about = settings.about if name == settings.name else ()
        (folder / name / CONFIG_FILE).write_text(render(config, about), encoding="utf-8")
    # Warm-up, labels and what a client has to know belong to the model that clients see.
    front = folder / settings.name
    (front / WARMUP_FOLDER).mkdir()
    for sample in warmup_samples(padded(engine, form), settings, warmup):
        for item in sample.inputs:
            (front / WARMUP_FOLDER / item.file).write_bytes(item.array.tobytes())
    if settings.labels:
        (front / LABELS_FILE).write_text("\n".join(settings.labels) + "\n", encoding="utf-8")
    write_readme(padded(engine, form), settings, front)


def check_models(
    engine: BuiltEngine, form: Packing, settings: TritonSettings, warmup: Mapping[str, NDArray[Any]], folder: Path
) -> None:
    """Compare what lies in `folder` with what `write_models` writes. Raises DeployError naming the first difference."""
    configs = _configs(engine, form, settings, warmup)
    for (name, files), config in zip(_files(engine, settings).items(), configs, strict=True):
        path = folder / name / CONFIG_FILE
        if read_config(path) != config:
            raise DeployError(f"{path} is not this engine's configuration; write the repository again")
        for file, source in files.items():
            stored = folder / name / VERSION / file
            if not stored.is_file() or not filecmp.cmp(source, stored, shallow=False):
                raise DeployError(f"{stored} is not {source}; write the repository again")


def padded(engine: BuiltEngine, form: Packing) -> BuiltEngine:
    """The engine as clients see it: inputs [batch, sequence], outputs [batch, ...] or [batch, sequence, ...]."""
    lead = ("batch", "choices") if form.choices else ("batch",)
    names = ("input_ids", "attention_mask", *({"token_type_ids"} & set(form.inputs)))
    outputs = []
    for info in engine.outputs:
        tail = ("sequence", *info.shape[2:]) if form.outputs[info.name] == "token" else info.shape[1:]
        outputs.append(replace(info, shape=lead if form.choices else (*lead, *tail)))
    inputs = tuple(TensorInfo(name, "int64", (*lead, "sequence")) for name in names)
    return replace(engine, inputs=inputs, outputs=tuple(outputs))


def _files(engine: BuiltEngine, settings: TritonSettings) -> dict[str, dict[str, Path]]:
    """Files in the version folder of both models."""
    beside = engine.files[0].with_name(packing.FILE)
    front = {MODEL: TEMPLATE, Path(packing.__file__).name: Path(packing.__file__), IDS.name: IDS, packing.FILE: beside}
    return {settings.name: front, plan_model(settings.name): served_files(engine, settings.backend)}


def _configs(
    engine: BuiltEngine, form: Packing, settings: TritonSettings, warmup: Mapping[str, NDArray[Any]]
) -> Sequence[Any]:
    """Configurations of the model in front and of the plan's."""
    seen = padded(engine, form)
    front = build_config(seen, settings, MODEL, warmup_samples(seen, settings, warmup))
    front.backend, front.platform = "python", ""
    front.instance_group[0].kind = front.instance_group[0].KIND_CPU
    for tensor in front.input:
        tensor.allow_ragged_batch = True  # requests of all lengths wait together: each is read by itself
    return front, plan_config(engine, settings)
