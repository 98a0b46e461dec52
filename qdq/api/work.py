"""A work directory as Python callers name it: the folder of a compile, or the folder of one of its targets."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.targets import TARGETS
from qdq.base.artifacts import read_json
from qdq.base.config import choice
from qdq.errors import WorkError
from qdq.pipeline.stages.race import REPORT
from qdq.pipeline.workdir import MANIFEST


@dataclass(frozen=True)
class Work:
    """A compile's folder, the target that is meant, and the manifest."""

    folder: Path
    target: str
    manifest: dict[str, Any]

    def report(self, name: str) -> dict[str, Any] | None:
        """Content of ``<target>/<name>.json``, None when that stage has not run."""
        path = self.folder / self.target / f"{name}.json"
        return read_json(path) if path.is_file() else None


def open_work(folder: str | os.PathLike[str], target: str | None = None) -> Work:
    """The work directory `folder`, for `target` or else the one its last run ended with.

    Raises WorkError when the folder is none, ConfigError for an unknown target.
    """
    place = Path(folder).expanduser()
    if not (place / MANIFEST).is_file() and place.resolve().name in TARGETS:
        place, target = place.resolve().parent, target or place.resolve().name
    if not (place / MANIFEST).is_file():
        raise WorkError(f"{folder}: is not the work directory of a compile; run 'qdq compile --out {folder}' first")
    manifest = read_json(place / MANIFEST)
    if target is not None:
        return Work(place, choice(target, TARGETS, "target"), manifest)
    built = [name for name in TARGETS if (place / name).is_dir()]
    return Work(place, _last_target(place, str(manifest["options"].get("target")), built), manifest)


def _last_target(place: Path, asked: str, built: list[str]) -> str:
    """The target a run ended with: the one that was asked for, or the winner of its race."""
    if asked in TARGETS:
        return asked
    winner = read_json(place / REPORT).get("target") if (place / REPORT).is_file() else None
    if winner in built:
        return str(winner)
    if not built:
        raise WorkError(f"{place}: holds no target's files yet; run 'qdq compile --out {place}'")
    return built[0]
