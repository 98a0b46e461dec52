"""Write a Triton model repository for one built engine: whole or not at all, and checked before it appears."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from engines.triton.check import check_buckets, check_repository
from engines.triton.interface import (
    CONFIG_FILE,
    LABELS_FILE,
    VERSION,
    WARMUP_FOLDER,
    of_width,
    require_batch,
    served_files,
)
from engines.triton.model_config import build_config, render
from engines.triton.settings import TritonSettings, bucket_model
from engines.triton.warmup import warmup_samples
from engines.types import BuiltEngine
from qdq.base.artifacts import atomic_folder
from qdq.errors import ConfigError, DeployError

log = logging.getLogger(__name__)


Warmup = Mapping[str, NDArray[Any]]


def write_repository(engine: BuiltEngine, settings: TritonSettings, warmup: Warmup, folder: Path) -> list[Path]:
    """Write `folder` (the model repository) with the one model ``<folder>/<settings.name>/`` and check it.

    `warmup` is one real sample per engine input, unbatched or [1, ...]. The repository is replaced as a whole; one that
    holds anything but this model is refused, because it is somebody else's. Returns the files written, sorted.
    Raises DeployError (nothing is changed then) and Unavailable when tritonclient is not installed.
    """
    if settings.buckets:
        raise ConfigError("settings with buckets are written by write_buckets, with a warm-up sample for each")
    _refuse_foreign(folder, (settings.name,))
    with atomic_folder(folder) as partial:
        _write_model(engine, settings, warmup, partial)
        check_repository(partial, engine)  # before the rename, so an unchecked repository never has the final name
    return _written(settings, folder)


def write_buckets(
    engine: BuiltEngine, settings: TritonSettings, warmups: Mapping[int, Warmup], folder: Path
) -> list[Path]:
    """Write `folder` with one model ``<settings.name>_s<length>`` per bucket of `settings`, and check them.

    `warmups` holds one real sample per bucket, padded to its length. Otherwise as `write_repository`.
    """
    if not settings.buckets or set(warmups) != set(settings.buckets):
        raise ConfigError(f"buckets {settings.buckets} need one warm-up sample each; found {sorted(warmups)}")
    _refuse_foreign(folder, tuple(bucket_model(settings.name, width) for width in settings.buckets))
    with atomic_folder(folder) as partial:
        for width in settings.buckets:
            one = replace(settings, name=bucket_model(settings.name, width), buckets=())
            _write_model(of_width(engine, width), one, warmups[width], partial, f"{settings.name}_cores")
        check_buckets(partial, engine, settings.name, settings.buckets)
    return _written(settings, folder)


def _written(settings: TritonSettings, folder: Path) -> list[Path]:
    log.info("Triton model '%s' (%s backend) written to %s", settings.name, settings.backend, folder)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write_model(
    engine: BuiltEngine, settings: TritonSettings, warmup: Warmup, folder: Path, resource: str | None = None
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
            (model / WARMUP_FOLDER / item.file).write_bytes(item.data)
    if settings.labels:
        (model / LABELS_FILE).write_text("\n".join(settings.labels) + "\n", encoding="utf-8")
    (model / CONFIG_FILE).write_text(render(config), encoding="utf-8")


def _refuse_foreign(folder: Path, names: tuple[str, ...]) -> None:
    if folder.exists() and not folder.is_dir():
        raise DeployError(f"{folder} is a file, not a model repository; remove it or choose another folder")
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in names) if folder.is_dir() else []
    if foreign:
        raise DeployError(
            f"{folder} holds '{foreign[0]}' beside the model '{names[0]}' and would be replaced as a whole; move it "
            "away or choose another folder"
        )
