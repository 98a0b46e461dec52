"""Settings of a search, each declared once; no torch."""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Any

from qdq.base.option import as_json, check, option
from qdq.errors import ConfigError
from qdq.loading.kinds import TASKS
from qdq.pipeline.options import HEADER, LABEL_COLUMN, LABELS, MANY, TARGETS
from qdq.text.data import TextSource

LAUNCHERS = ("local", "accelerate", "slurm", "ray")
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """Seconds of a duration as typed: 90, 90s, 30m, 1.5h. Raises ConfigError."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([smh]?)\s*", text)
    if found is None or float(found[1]) <= 0:
        raise ConfigError(f"--budget: expected a duration, such as 30m, 90s or 1.5h, found '{text}'")
    return float(found[1]) * UNITS[found[2]]


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Settings of a search as typed; `validate` checks them."""

    model: str = option(MISSING, "fine-tuned checkpoint: hub id or folder", metavar="ID")
    train: str = option(MISSING, "training text, from which students learn and ranges are calibrated", metavar="DATA")
    dev: str = option(
        MISSING, "labelled development text, which chooses: all of it with --test, else the odd rows", metavar="DATA"
    )
    test: str = option("", "labelled text that only judges (default: even rows of --dev)", metavar="DATA")
    task: str | None = option(None, " (default: from the checkpoint's architecture)", choices=TASKS)
    text_columns: tuple[str, ...] = option((), " (default: detected)", metavar="A[,B]")
    label_column: str | None = option(None, LABEL_COLUMN)
    header: tuple[str, ...] = option((), HEADER, metavar="A,B")
    labels: tuple[str, ...] = option((), LABELS, metavar="A,B")
    target: str = option("auto", "runtime of the engines", choices=TARGETS)
    budget: float = option(
        1800.0,
        "time for everything, such as 90s, 30m, 1.5h: training, engines, the race (default: 30m)",
        metavar="TIME",
        positive=True,
        read=seconds,
    )
    max_drop: float = option(0.5, "points of the metric that may be lost", metavar="P", within=(0, 100))
    batch: int = option(40, "texts of a request that engines are raced with", within=(1, 4096))
    sequence: int = option(128, "tokens of a text; longer ones are cut", within=(4, MANY))
    threads: int = option(0, "threads of training and engines (default: 0, all cores)", within=(0, 4096))
    save_dir: str = option("output", "folder of everything that is made; a killed search continues here", metavar="DIR")
    seed: int = option(42, "of trainings", within=(0, MANY))
    launcher: str = option("local", "who runs the jobs", choices=LAUNCHERS)

    def validate(self) -> None:
        """Raise ConfigError for the first value that cannot be meant."""
        check(self)
        for name in ("train", "dev"):
            if not getattr(self, name):
                raise ConfigError(f"--{name}: is empty; name a file, a folder or datasets:NAME:SPLIT")
        if self.train == self.dev:
            raise ConfigError("--train and --dev are the same; text that trained cannot choose or judge")
        if self.test in (self.train, self.dev):
            raise ConfigError("--test names text that trains or chooses; give other text, or leave --test out")

    @property
    def folder(self) -> Path:
        """Folder of everything that is made."""
        return Path(self.save_dir)

    def source(self, path: str) -> TextSource:
        """`path` with the columns and labels that were named."""
        return TextSource(path, self.text_columns, self.label_column, self.header, self.labels)

    @property
    def absolute(self) -> SearchSettings:
        """The same with whole paths, for a process that starts elsewhere."""
        named = {name: getattr(self, name) for name in ("model", "train", "dev", "test")}
        places = {name: Path(one).expanduser() for name, one in named.items() if one}
        found: dict[str, Any] = {name: str(one.resolve()) for name, one in places.items() if one.exists()}
        return replace(self, **{**found, "save_dir": str(self.folder.resolve())})

    def as_json(self) -> dict[str, Any]:
        """Plain JSON value of every setting."""
        return as_json(self)

    @property
    def deciding(self) -> dict[str, Any]:
        """Settings that a search which continues must share: all but the folder, the launcher and the budget."""
        return {key: value for key, value in self.as_json().items() if key not in ("save_dir", "launcher", "budget")}


def from_json(values: dict[str, Any]) -> SearchSettings:
    """Settings from `SearchSettings.as_json`."""
    typed: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in values.items()}
    return SearchSettings(**typed)
