"""Write the Triton model repository of one built engine: whole or not at all, and checked before it appears."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from engines.triton.check import check_repository
from engines.triton.interface import (
    CONFIG_FILE,
    LABELS_FILE,
    VERSION,
    WARMUP_FOLDER,
    require_batch,
    served_files,
    served_models,
)
from engines.triton.model_config import build_config, render
from engines.triton.packed import check_models, form_of, plan_model, write_models
from engines.triton.readme import write_readme
from engines.triton.settings import TritonSettings
from engines.triton.warmup import warmup_samples
from engines.types import BuiltEngine
from qdq.base.artifacts import atomic_folder
from qdq.errors import ConfigError, DeployError

log = logging.getLogger(__name__)

Warmup = Mapping[str, NDArray[Any]]


def write_repository(
    engine: BuiltEngine, settings: TritonSettings, warmups: Sequence[Warmup], folder: Path
) -> list[Path]:
    """Write `folder` (the model repository) and check it: ``<settings.name>/``, or one model per length bucket.

    A plan whose batch is not padded (packing.json beside it) is served by two models, see `engines.triton.packed`.
    `warmups` holds one real sample per model, in the order of `settings.buckets` and padded to their lengths: an array
    per engine input, unbatched or [1, ...]. The repository is replaced as a whole; one that holds anything but these
    models is refused, because it is somebody else's. Returns the files written, sorted. Raises ConfigError when a
    sample is missing, DeployError (nothing is changed then) and Unavailable when tritonclient is not installed.
    """
    form = form_of(engine)
    if form is not None:
        refuse_foreign(folder, (settings.name, plan_model(settings.name)))
        with atomic_folder(folder) as partial:
            write_models(engine, form, settings, warmups[0], partial)
            check_models(engine, form, settings, warmups[0], partial)
        return sorted(path for path in folder.rglob("*") if path.is_file())
    models = served_models(engine, settings)
    if len(warmups) != len(models):
        raise ConfigError(f"{len(models)} Triton model(s) need one warm-up sample each; found {len(warmups)}")
    refuse_foreign(folder, tuple(models))
    resource = f"{settings.name}_cores" if settings.buckets else None
    with atomic_folder(folder) as partial:
        for (name, served), warmup in zip(models.items(), warmups, strict=True):
            _write_model(served, replace(settings, name=name, buckets=()), warmup, partial, resource)
        check_repository(partial, engine, settings)  # before the rename: what has the final name was checked
    log.info("Triton model '%s' (%s backend) written to %s", settings.name, settings.backend, folder)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write_model(
    engine: BuiltEngine, settings: TritonSettings, warmup: Warmup, folder: Path, resource: str | None
) -> None:
    """The model ``<folder>/<settings.name>/``; `resource` as in `build_config`."""
    require_batch(engine, settings.max_batch_size)
    files = served_files(engine, settings.backend)
    samples = warmup_samples(engine, settings, warmup)
    config = build_config(engine, settings, next(iter(files)), samples, resource)
    model = folder / settings.name
    (model / VERSION).mkdir(parents=True)
    (model / WARMUP_FOLDER).mkdir()
    for name, source in files.items():
        shutil.copyfile(source, model / VERSION / name)
    for sample in samples:
        for item in sample.inputs:
            (model / WARMUP_FOLDER / item.file).write_bytes(item.array.tobytes())
    if settings.labels:
        (model / LABELS_FILE).write_text("\n".join(settings.labels) + "\n", encoding="utf-8")
    write_readme(engine, settings, model)
    (model / CONFIG_FILE).write_text(render(config, settings.about), encoding="utf-8")


def refuse_foreign(folder: Path, names: tuple[str, ...]) -> None:
    """Raise DeployError for a folder with anything but these models, which is somebody else's."""
    if folder.exists() and not folder.is_dir():
        raise DeployError(f"{folder} is a file, not a model repository; remove it or choose another folder")
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in names) if folder.is_dir() else []
    if foreign:
        raise DeployError(
            f"{folder} holds '{foreign[0]}' beside the model '{names[0]}' and would be replaced as a whole; move it "
            "away or choose another folder"
        )
