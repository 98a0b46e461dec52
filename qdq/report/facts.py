"""Everything a page about a compile is made from: the JSON files of its work directory, read once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qdq.base.artifacts import read_json

SHARED = ("placement", "calibration", "histograms", "race", "search", "sensitivity")
OF_TARGET = ("build", "accuracy", "disagreements", "benchmark", "passes", "estimate")
INT8 = "int8"  # contestant of a benchmark: the run's own engine

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """A compile, for one target.

    Attributes:
        folder: the work directory; target: the runtime.
        manifest: manifest.json.
        files: content of every other JSON file by its name without suffix; a stage that has not run has none.
        verdict: INT8 beside the fastest FP32 engine, as ``--json`` has it; None without a benchmark.
        command: words of the command that repeats the compile.
        sizes: bytes of the engine and of the float graph, 0 where there is none.
        missing: what this machine lacked to build the engine, "" when it is built.
    """

    folder: Path
    target: str
    manifest: Json
    files: Mapping[str, Json]
    verdict: Json | None = None
    command: tuple[str, ...] = ()
    sizes: tuple[int, int] = (0, 0)
    missing: str = ""

    def get(self, name: str) -> Json | None:
        """One of the files, None when it is not there."""
        return self.files.get(name)

    @property
    def name(self) -> str:
        """The model's short name."""
        return str(self.manifest.get("model", {}).get("name", self.folder.name))

    @property
    def options(self) -> Json:
        """Options of the run, as the manifest has them."""
        found: Json = self.manifest.get("options", {})
        return found

    @property
    def task(self) -> str:
        """The model's task."""
        return str(self.options.get("task") or "unknown task")

    @cached_property
    def coverage(self) -> Coverage | None:
        """Multiplications in INT8: NVIDIA's account of a TensorRT graph where there is one, else the engine's own."""
        build = self.get("build") or {}
        if compiled := build.get("compiled"):
            return Coverage(tuple(compiled["linears"]), tuple(compiled["attentions"]), "attentions", compiled)
        if int8 := build.get("int8"):
            pairs = tuple(int8["encoder_linear"]), tuple(int8["attention_matmul"])
            return Coverage(*pairs, "attention products", int8)
        return None

    @property
    def points(self) -> tuple[Json, ...]:
        """Every candidate of the placement."""
        return tuple((self.get("placement") or {}).get("points", ()))


@dataclass(frozen=True)
class Coverage:
    """(in INT8, all) of the encoder's linears and of its attention, and what is not, with reasons."""

    linears: tuple[int, ...]
    attention: tuple[int, ...]
    unit: str  # of the latter
    source: Json

    @property
    def not_int8(self) -> tuple[Json, ...]:
        """Name and reason of every multiplication that is not INT8."""
        return tuple(self.source.get("not_int8", ()))


def read_facts(folder: Path, target: str, **known: Any) -> Facts:
    """Read the work directory; `known` are the other fields of `Facts`. Raises DeployError for a damaged file."""
    files = dict(_read(folder, SHARED)) | dict(_read(folder / target, OF_TARGET))
    nested = folder / "sensitivity" / "sensitivity.json"  # where `qdq sensitivity build/x` puts it
    if "sensitivity" not in files and nested.is_file():
        files["sensitivity"] = read_json(nested)
    return Facts(folder, target, read_json(folder / "manifest.json"), files, **known)


def _read(folder: Path, names: Iterable[str]) -> Iterable[tuple[str, Json]]:
    for name in names:
        path = folder / f"{name}.json"
        if path.is_file():
            yield name, read_json(path)
