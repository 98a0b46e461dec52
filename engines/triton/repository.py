"""Write a Triton model repository for one built engine: whole or not at all, and checked before it appears."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
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
)
from engines.triton.model_config import build_config, render
from engines.triton.settings import TritonSettings
from engines.triton.warmup import warmup_samples
from engines.types import BuiltEngine
from qdq.artifacts import atomic_folder
from qdq.errors import DeployError

log = logging.getLogger(__name__)


def write_repository(
    engine: BuiltEngine, settings: TritonSettings, warmup: Mapping[str, NDArray[Any]], folder: Path
) -> list[Path]:
    """Write `folder` (the model repository) with the one model ``<folder>/<settings.name>/`` and check it.

    `warmup` is one real sample per engine input, unbatched or [1, ...]. The repository is replaced as a whole; one that
    holds anything but this model is refused, because it is somebody else's. Returns the files written, sorted.
    Raises DeployError (nothing is changed then) and Unavailable when tritonclient is not installed.
    """
    _refuse_foreign(folder, settings.name)
    require_batch(engine, settings.max_batch_size)
    files = served_files(engine, settings.backend)
    samples = warmup_samples(engine, settings, warmup)
    config = build_config(engine, settings, next(iter(files)), samples)
    with atomic_folder(folder) as partial:
        model = partial / settings.name
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
        check_repository(partial, engine)  # before the rename, so an unchecked repository never has the final name
    log.info("Triton model '%s' (%s backend) written to %s", settings.name, settings.backend, folder)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _refuse_foreign(folder: Path, name: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise DeployError(f"{folder} is a file, not a model repository; remove it or choose another folder")
    foreign = sorted(path.name for path in folder.iterdir() if path.name != name) if folder.is_dir() else []
    if foreign:
        raise DeployError(
            f"{folder} holds '{foreign[0]}' beside the model '{name}' and would be replaced as a whole; move it away "
            "or choose another folder"
        )
