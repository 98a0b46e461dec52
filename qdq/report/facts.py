"""Everything a page about a compile is made from: the JSON files of its work directory, read once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from qdq.base.artifacts import read_json

SHARED = ("placement", "calibration", "histograms", "race", "search", "sensitivity")
OF_TARGET = ("build", "accuracy", "disagreements", "benchmark", "passes", "estimate")
INT8 = "int8"  # contestant of a benchmark: the run's own engine

Json = Mapping[str, Any]


@dataclass(frozen=True)
class NotInt8:
    """One matrix multiplication that does not run in INT8, by its name in the graph, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Coverage:
    """Multiplications that the built engine runs in INT8, read back from it: (in INT8, all).

    `attention` counts matrix products, two a layer; where `compiler` names NVIDIA's, whose account of a TensorRT graph
    this is, whole attentions, one a layer.
    """

    linears: tuple[int, int]
    attention: tuple[int, int]
    not_int8: tuple[NotInt8, ...]
    compiler: str | None = None

    @classmethod
    def read(cls, build: Json) -> Self | None:
        """From build.json; None where nothing is known."""
        int8, compiled = build.get("int8"), build.get("compiled")
        if compiled:  # NVIDIA's own account of a TensorRT graph outranks ours
            linear, attention, found = compiled["linears"], compiled["attentions"], compiled
        elif int8:
            linear, attention, found = int8["encoder_linear"], int8["attention_matmul"], int8
        else:
            return None
        reasons = tuple(NotInt8(entry["name"], entry["reason"]) for entry in found["not_int8"])
        compiler = str(compiled["by"]) if compiled else None
        return cls((linear[0], linear[1]), (attention[0], attention[1]), reasons, compiler)

    @property
    def unit(self) -> str:
        """Whatever `attention` counts."""
        return "attentions" if self.compiler else "attention products"


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
        return Coverage.read(self.get("build") or {})

    @property
    def points(self) -> tuple[Json, ...]:
        """Every candidate of the placement."""
        return tuple((self.get("placement") or {}).get("points", ()))


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
