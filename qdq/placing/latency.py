"""Engines of placements on the curve of `--search`, timed in one interleaved run: what leaving units out really costs.

For the CPU targets. A TensorRT engine per placement is minutes of building on the machine it is for; there the cost
stays what the estimator predicts, and `qdq compile --spec` with one of the placements measures it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import Unavailable
from qdq.placing.search import Search
from qdq.placing.sensitivity.groups import layer_of
from qdq.placing.units import Unit

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

    from engines.types import Feeds, Runner
    from qdq.load.model import LoadedModel

MEASURED = 6  # placements of the curve: the first, the best, and others evenly spaced by predicted cost
ROUNDS = 10


@dataclass(frozen=True)
class Timing:
    """What the engines are built for and fed: a CPU target, threads, and batches of one shape."""

    target: str
    threads: int
    feeds: Sequence[Feeds]

    @property
    def shape(self) -> tuple[int, ...]:
        """[batch, sequence], or [batch, choices, sequence]."""
        shape: tuple[int, ...] = self.feeds[0]["input_ids"].shape
        return shape


@contextmanager
def exported(loaded: LoadedModel, example: dict[str, Any]) -> Iterator[Path]:
    """The canonical graph of an injected and calibrated model, in a folder that is gone afterwards."""
    from export.to_onnx import export_onnx
    from qdq.inject.quantizer import folded

    with tempfile.TemporaryDirectory(prefix="qdq-search-") as folder:
        graph = Path(folder) / "model.onnx"
        with folded(loaded.model):
            export_onnx(loaded.module(), example, loaded.outputs, graph)
        yield graph


def engine_without(canonical: onnx.ModelProto, left_out: Collection[str], folder: Path, timing: Timing) -> Runner:
    """The engine of a canonical graph with the points `left_out` in floating point; its files are in a new `folder`.

    Raises Unavailable without the runtime.
    """
    from engines.opening import Opening, open_runner
    from export.lint.removal import without_points
    from export.passes import lower
    from export.to_onnx import save_proto

    folder.mkdir()
    save_proto(without_points(canonical, left_out), folder / "canonical.onnx")
    lower(folder / "canonical.onnx", timing.target, folder)
    opening = Opening(timing.target, str(folder / "model.onnx"), timing.threads, static=len(timing.shape) == 2)
    try:
        return open_runner(opening, timing.shape)
    except ImportError as error:
        raise Unavailable(f"{error.name or error} is not installed; pip install '.[cpu]'") from error


def with_latency(found: Search, units: Sequence[Unit], graph: Path, timing: Timing) -> Search:
    """`found` with the measured latency of some placements, in the unit of their predicted cost.

    `graph`: canonical, with every point of `units`. Raises Unavailable.
    """
    import onnx

    from engines.bench import BenchSettings, Contestant, bench
    from qdq.base.versions import versions

    members = {unit.name: unit.points for unit in units}
    layers = {layer_of(point) for points in members.values() for point in points} - {None}
    canonical, chosen = onnx.load(graph), spread_over(found)
    with tempfile.TemporaryDirectory(prefix="qdq-search-") as folder:
        runners = []
        for index in chosen:
            gone = [name for name, _, _ in found.ranking[: found.curve[index].dropped]]
            points = {point for name in gone for point in members[name]}
            runner = engine_without(canonical, points, Path(folder) / str(index), timing)
            runners.append(Contestant(str(index), timing.target, runner))
        settings = BenchSettings(
            timing.shape[0], timing.shape[-1], None, samples=ROUNDS, threads=timing.threads, bases=("0",)
        )
        report = bench(runners, timing.feeds, settings, versions())
    slower = {index: 1 / report["contestants"][str(index)]["speedup"]["0"] - 1 for index in chosen}
    curve = (
        replace(tried, measured=slower[index] * len(layers)) if index in slower else tried
        for index, tried in enumerate(found.curve)
    )
    return replace(found, curve=tuple(curve))


def spread_over(found: Search, count: int = MEASURED) -> list[int]:
    """Indices of placements on the curve: the first, the best, and others at evenly spaced predicted costs."""
    costs = [tried.cost for tried in found.curve]
    wanted = [costs[-1] * step / (count - 1) for step in range(count)]
    nearest = {min(range(len(costs)), key=lambda index: abs(costs[index] - cost)) for cost in wanted}
    return sorted({0, *nearest} | ({found.best} if found.best is not None else set()))
