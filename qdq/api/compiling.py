"""`qdq.compile`: a checkpoint in, a measured engine out, and what was measured as objects."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from qdq.base.artifacts import write_text
from qdq.base.config import nearest
from qdq.errors import ConfigError, DataError

if TYPE_CHECKING:
    from qdq.api.engine import Engine
    from qdq.api.progress import Callback
    from qdq.api.results import Accuracy, Benchmark, Coverage
    from qdq.api.work import Work

PathLike: TypeAlias = str | os.PathLike[str]
# A file, folder or ``datasets:NAME``; or texts, pairs of texts, or rows with a text and a label.
Texts: TypeAlias = PathLike | Iterable[str | tuple[str, str] | Mapping[str, Any]]


@dataclass(frozen=True)
class Compiled:
    """Result of a compile: its work directory, and what was measured.

    Attributes:
        path: the work directory.
        target: the runtime its engine is for.
        missing: what this machine lacks to build the engine, "" when it is built.
        warnings: what the compile warned of.
    """

    path: Path
    target: str
    missing: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def engine_file(self) -> Path | None:
        """The engine, None where it could not be built on this machine."""
        from engines.targets import TARGETS

        file = self.path / self.target / TARGETS[self.target].engine
        return file if file.is_file() else None

    @property
    def report(self) -> Path:
        """The page that shows the whole compile."""
        return self.path / "report.html"

    @property
    def model_repository(self) -> Path | None:
        """The Triton model repository, None without one."""
        from qdq.base.choices import REPOSITORY

        folder = self.path / self.target / REPOSITORY
        return folder if folder.is_dir() else None

    @cached_property
    def coverage(self) -> Coverage | None:
        """Multiplications of the engine that run in INT8; None while no engine and no compiler has said so."""
        from qdq.api.results import Coverage

        found = self._work.report("build")
        return Coverage.read(found) if found else None

    @cached_property
    def accuracy(self) -> Accuracy | None:
        """Distance from FP32; None when the engine was not run."""
        from qdq.api.results import Accuracy

        found = self._work.report("accuracy")
        return Accuracy.read(found) if found else None

    @cached_property
    def benchmark(self) -> Benchmark | None:
        """Latencies beside FP32; None when the engine was not timed."""
        from qdq.api.results import Benchmark

        found = self._work.report("benchmark")
        return Benchmark.read(found) if found else None

    @property
    def _work(self) -> Work:
        from qdq.api.work import open_work

        return open_work(self.path, self.target)

    def load(self, *, threads: int = 0) -> Engine:
        """The engine, ready to answer: `qdq.load` of this work directory."""
        from qdq.api.engine import load

        return load(self.path, target=self.target, threads=threads)


def compile(
    model: PathLike | None = None,
    *,
    target: str | None = None,
    calibration: Texts | None = None,
    eval_data: Texts | None = None,
    out: PathLike | None = None,
    progress: bool | Callback = False,
    **options: Any,
) -> Compiled:
    """Compile a checkpoint to an INT8 engine, verify and time it; as ``qdq compile`` does.

    A stage whose files are still valid is skipped, so a second call with the same arguments takes seconds.

    >>> compiled = qdq.compile("my-bert", target="openvino", calibration=["a text", "another one"])
    >>> compiled.accuracy.agreement, compiled.benchmark.speedup

    Args:
        model: hub id or folder in transformers format; None is the bundled all-MiniLM-L6-v2.
        target: ``openvino``, ``onnxruntime``, ``tensorrt`` or ``tensorrt-rtx``; None is the fastest of this machine.
        calibration: text to choose ranges by: a file, a folder, ``datasets:NAME``, or the texts themselves (strings,
            pairs of strings, or mappings with a text and a label); None is bundled English text.
        eval_data: text to compare and time on, likewise; None is the rows behind the calibration rows.
        out: work directory; None is ``build/<model name>``.
        progress: True shows bars and lines on standard error, a function gets every `Progress` event.
        options: any other option of ``qdq compile`` by its field's name, such as ``sequence=256`` or
            ``placement="linear"``; ``qdq compile --help`` lists them.

    Raises QdqError, see `qdq.errors`. A target that this machine cannot build is no error: `Compiled.missing` says
    what is lacking, and everything before it was done.
    """
    from qdq.base.screen import Screen, logged_to
    from qdq.loading.source import short_name
    from qdq.pipeline.compile import compile_model
    from qdq.pipeline.options import CompileOptions

    # The options as the command line would have them.
    known = [declared.name for declared in fields(CompileOptions)]
    for name in options:
        if name not in known:
            raise ConfigError(f"compile() has no option '{name}'; {nearest(name, known)}")
    typed: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    named = None if model is None else os.fspath(model)
    folder = Path(out) if out is not None else Path("build") / short_name(named)
    texts = {"calibration": calibration, "eval_data": eval_data}
    typed |= {name: _source(name, value, folder) for name, value in texts.items() if value is not None}
    typed |= {} if target is None else {"target": target}
    # The run, on a screen that reports to the caller.
    screen: Screen
    if progress is True:
        screen = Screen()
    else:
        from qdq.api.events import EventScreen

        screen = EventScreen(progress or None)
    with logged_to(screen):
        outcome = compile_model(CompileOptions(model=named, out=str(folder), **typed), screen)
    return Compiled(Path(outcome.out), outcome.target, outcome.missing, tuple(outcome.warnings))


def _source(name: str, texts: Texts, folder: Path) -> str:
    """The name of a source of text; texts themselves are kept beside the compile, so that it can be repeated."""
    if isinstance(texts, str | os.PathLike):
        return os.fspath(texts)
    rows = [_row(name, index, value) for index, value in enumerate(texts)]
    if not rows:
        raise DataError(f"{name}: holds no text; give at least one")
    lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rows)
    return str(write_text(folder / f"{name}.jsonl", "".join(f"{line}\n" for line in lines)))


def _row(name: str, index: int, value: str | tuple[str, str] | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(text, str) for text in value):
        return {"text": value[0], "pair": value[1]}
    raise DataError(
        f"{name}[{index}]: is {type(value).__name__}; give a string, a pair of strings, or a mapping with a text"
    )
