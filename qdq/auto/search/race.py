"""All engines of a search against each other, interleaved on full rows of the asked shape; on a GPU that is not there,
estimated.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.targets import TARGETS, EngineOptions
from qdq.auto.search.settings import SearchSettings
from qdq.pipeline.run import FLOAT
from qdq.text.data import read_records

FP32 = "fp32"
BATCHES = 5  # different ones that the race rotates through
ROUNDS = 30  # at most
SHARE, LEAST_SECONDS, MOST_SECONDS = 0.03, 3.0, 60.0  # of the search's budget go to the race, within these seconds
RESAMPLES, CONFIDENCE, SEED = 1000, 0.95, 0
DEVICE = "t4"  # whose time is estimated where no GPU is


@dataclass(frozen=True)
class Entry:
    """A finished engine: its name, its work directory and its target."""

    name: str
    work: Path
    target: str


def race(entries: Sequence[Entry], settings: SearchSettings, threads: int, progress: Any = None) -> dict[str, Any]:
    """Time `entries`, the base engine first, beside the FP32 engine of its model; the content of race.json.

    Every entry has ``p50_ms`` and ``ratio``: how much faster than the base, with a 95 % interval over rounds. Raises
    BuildError for an engine that cannot be opened.
    """
    from engines.bench import BenchSettings, Contestant
    from engines.bench.interleave import Race
    from engines.bench.machine import machine
    from engines.bench.workload import check_workload, describe_workload
    from qdq.base.versions import versions
    from qdq.loading.model import load_model
    from qdq.text.workload import full_rows

    # The batches, and one runner per engine, opened for their shape
    loaded, shape = load_model(settings.model, settings.task), (settings.batch, settings.sequence)
    records, _ = read_records(settings.source(settings.dev), settings.batch * BATCHES)
    feeds = full_rows(loaded.tokenizer, records, loaded.inputs, shape, BATCHES)
    check_workload(feeds, *shape)
    base, options = entries[0], EngineOptions(threads, shape=shape)
    float_engine = TARGETS[base.target].open(base.work / FLOAT, options)
    field = [Contestant(FP32, base.target, float_engine)]
    for entry in entries:
        target = TARGETS[entry.target]
        runner = target.open(entry.work / entry.target / target.engine, options)
        field.append(Contestant(entry.name, entry.target, runner))
    # Everyone in turn, and ratios within rounds
    budget = min(MOST_SECONDS, max(LEAST_SECONDS, SHARE * settings.budget))
    conditions = BenchSettings(*shape, budget_s=budget, samples=ROUNDS, threads=threads, bases=(base.name,))
    run = Race(field, feeds, conditions, time.perf_counter_ns, progress).run()
    return {
        "measured": True,
        "base": base.name,
        "batch": settings.batch,
        "sequence": settings.sequence,
        "threads": threads,
        "rounds": run.rounds,
        "workload": describe_workload(feeds),
        "machine": machine(),
        "versions": versions(),
        "engines": {name: _entry(run.samples[name], run.samples[base.name]) for name in run.samples},
    }


def _entry(own: Mapping[int, int], base: Mapping[int, int]) -> dict[str, Any]:
    rounds = sorted(own.keys() & base.keys())
    ratios = np.array([base[turn] / own[turn] for turn in rounds])
    low, high = interval(ratios)
    p50 = float(np.median([own[turn] for turn in own])) / 1e6
    ratio = {"value": float(np.median(ratios)), "low": low, "high": high}
    return {"p50_ms": round(p50, 3), "samples": len(own), "ratio": {key: round(x, 4) for key, x in ratio.items()}}


def interval(ratios: NDArray[np.float64]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the median of per-round ratios; seeded."""
    drawn = np.random.default_rng(SEED).choice(ratios, (RESAMPLES, len(ratios)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(drawn, axis=1), [tail, 1 - tail])
    return float(low), float(high)


def estimated(entries: Sequence[Entry], settings: SearchSettings) -> dict[str, Any]:
    """As `race`, for graphs of a GPU that is not there: latencies by the analytical model, of graphs as compiled."""
    found = {entry.name: estimate_of(entry.work / entry.target / "model.onnx", settings, DEVICE) for entry in entries}
    base = found[entries[0].name]
    engines = {name: _estimated(one["lowered"], base["lowered"]) for name, one in found.items()}
    return {
        "measured": False,
        "device": DEVICE,
        "base": entries[0].name,
        "batch": settings.batch,
        "sequence": settings.sequence,
        "engines": {FP32: _estimated(base["float32"], base["lowered"]), **engines},
    }


def _estimated(own: float, base: float) -> dict[str, Any]:
    ratio = round(base / own, 4)
    return {"p50_ms": round(own, 4), "samples": 0, "ratio": {"value": ratio, "low": ratio, "high": ratio}}


def estimate_of(graph: Path, settings: SearchSettings, device: str) -> dict[str, float]:
    """Estimated milliseconds of a lowered TensorRT graph, and of the same network in FP16 and FP32."""
    from engines.estimate import compiled_kernels, estimate, find_device
    from export.lint import fusion_map
    from export.lint.command import read_model

    place, shape = find_device(device), (settings.batch, settings.sequence)
    layers = fusion_map(read_model(graph), place.compute_capability, settings.sequence)
    report = estimate(layers, place.name, *shape, compiled_kernels(graph, place, *shape))
    return {name: float(report["estimate_ms"][name]) for name in ("lowered", "float16", "float32")}
