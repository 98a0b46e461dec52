"""Engines of placements on the curve of `--search`, timed in one interleaved run: what leaving units out really costs.

For the CPU targets; `qdq.placing.compiled` is its like for TensorRT, whose engines cannot be timed without their GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import Unavailable
from qdq.placing.search import Search
from qdq.placing.units import Unit, layer_of

if TYPE_CHECKING:
    import onnx

    from engines.types import Runner
    from qdq.base.types import Feeds
    from qdq.loading.model import LoadedModel

MEASURED = 6  # placements of the curve: the first, the best, and others evenly spaced by predicted cost
ROUNDS = 10


@dataclass(frozen=True)
class Timing:
    """Conditions of a run: a CPU target, threads, batches of one shape, and how often each engine gets one."""

    target: str
    threads: int
    feeds: Sequence[Feeds]
    rounds: int = ROUNDS

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


def added_latency(graph: Path, left_out: Mapping[str, Collection[str]], timing: Timing) -> dict[str, float]:
    """Time an engine per placement in one interleaved run.

    `graph` is canonical; `left_out` names the placements by the points that are floating point in each. Returns the
    share of the first one's latency that each takes longer. Raises Unavailable without the runtime.
    """
    import onnx

    from engines.bench import BenchSettings, Contestant, bench
    from qdq.base.versions import versions

    canonical, first = onnx.load(graph), next(iter(left_out))
    with tempfile.TemporaryDirectory(prefix="qdq-search-") as folder:
        runners = [
            Contestant(name, timing.target, _engine_without(canonical, points, Path(folder) / str(number), timing))
            for number, (name, points) in enumerate(left_out.items())
        ]
        shape, threads = timing.shape, timing.threads
        settings = BenchSettings(shape[0], shape[-1], None, samples=timing.rounds, threads=threads, bases=(first,))
        timed = bench(runners, timing.feeds, settings, versions())["contestants"]
    return {name: 1 / timed[name]["speedup"][first] - 1 for name in left_out}


def _engine_without(canonical: onnx.ModelProto, left_out: Collection[str], folder: Path, timing: Timing) -> Runner:
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
    layers = {layer_of(point) for unit in units for point in unit.points}
    left_out = {str(index): points for index, points in some_placements(found, units).items()}
    added = {index: share * len(layers) for index, share in added_latency(graph, left_out, timing).items()}
    return replace(found, curve=tuple(replace(t, measured=added.get(str(t.dropped))) for t in found.curve))


def some_placements(found: Search, units: Sequence[Unit]) -> dict[int, list[str]]:
    """Units left out -> the points these are, for `MEASURED` placements or one more: those worth an engine."""
    members = {unit.name: unit.points for unit in units}
    return {
        index: [point for ranked in found.ranking[:index] for point in members[ranked.unit]]
        for index in spread_over(found)
    }


def spread_over(found: Search) -> list[int]:
    """Indices of placements on the curve: the first, the best, and others at evenly spaced predicted costs."""
    costs = [tried.cost for tried in found.curve]
    wanted = [costs[-1] * index / (MEASURED - 1) for index in range(MEASURED)]
    nearest = {min(range(len(costs)), key=lambda index: abs(costs[index] - cost)) for cost in wanted}
    return sorted({0, *nearest} | ({found.best} if found.best is not None else set()))
