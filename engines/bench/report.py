"""benchmark.json: percentiles, throughput and paired speedups of an interleaved run.

* Percentiles interpolate linearly between order statistics (numpy's default, Hyndman & Fan type 7). p99 is null under
  100 samples and p95 under 20: no sample would lie beyond them. p90 is always given; read it with `samples` beside it.
* `sequences_per_s` is streams x batch / mean latency in seconds (multiple choice: one sequence is one question with all
  choices).
* `speedup[base]` is the median, over the rounds in which both ran, of base latency / own latency in that round
  (> 1: faster than that base). Pairs from one round see the same machine, so a slow drift cancels; the ratio of two p50
  values does not have that property. Bases are the contestants whose name ends in ``-fp32``, those fed cropped batches
  included (``-fp32-cropped``), and those that the settings name, itself included.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engines.bench.interleave import CROPPED, BenchSettings, Clock, Contestant, Race
from engines.bench.machine import machine
from engines.bench.workload import check_workload, describe_workload
from qdq.base.types import Feeds, Progress
from qdq.errors import ConfigError

BASE_SUFFIX = "-fp32"
PERCENTILES = {"p50": (50, 1), "p90": (90, 1), "p95": (95, 20), "p99": (99, 100)}  # name: (percentile, fewest samples)


def bench(
    contestants: Sequence[Contestant],
    workload: Sequence[Feeds],
    settings: BenchSettings,
    versions: Mapping[str, str],
    progress: Progress | None = None,
    clock: Clock = time.perf_counter_ns,
) -> dict[str, Any]:
    """Time all contestants interleaved on `workload` and return the benchmark.json object (times in milliseconds).

    `workload`: batches of shape [batch, sequence] (multiple choice [batch, choices, sequence]). `progress` counts
    milliseconds of the budget, or rounds without one. Raises ConfigError for a bad line-up or workload and BuildError
    for a contestant that returns nothing, NaN or Inf.
    """
    # Refuse what cannot be compared before minutes are spent on it.
    _check_line_up(contestants)
    check_workload(workload, settings.batch, settings.sequence)
    race = Race(contestants, workload, settings, clock, progress).run()
    elapsed_s = race.elapsed() / 1e9
    return {
        "batch": settings.batch,
        "sequence": settings.sequence,
        "threads": settings.threads,
        "streams": settings.streams,
        "budget_s": settings.budget_s,
        "budget_exceeded": settings.budget_s is not None and elapsed_s > settings.budget_s,
        "elapsed_s": elapsed_s,
        "rounds": race.rounds,
        "workload": describe_workload(workload),
        "contestants": {c.name: _entry(c, race) for c in contestants if c.name in race.samples},
        "machine": machine(),
        "versions": dict(versions),
    }


def _check_line_up(contestants: Sequence[Contestant]) -> None:
    names = [contestant.name for contestant in contestants]
    if not names:
        raise ConfigError("the benchmark has no contestants; give it at least one engine")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(
            f"two contestants are called '{repeated[0]}'; names are keys of benchmark.json, make them unique"
        )


def _entry(contestant: Contestant, race: Race) -> dict[str, Any]:
    own, settings = race.samples[contestant.name], race.settings
    latency_ms = summarize([ns / 1e6 for ns in own.values()])
    bases = [name for name in race.samples if is_base(name) or name in settings.bases]
    return {
        "engine": contestant.engine,
        "samples": len(own),
        "every": race.every[contestant.name],
        "warmup": len(race.warm[contestant.name]),
        "latency_ms": latency_ms,
        "sequences_per_s": settings.streams * settings.batch / (sum(own.values()) / len(own) / 1e9),
        "speedup": {base: paired_speedup(race.samples[base], own) for base in bases},
    }


def is_base(name: str) -> bool:
    """True for an FP32 contestant, whichever form of the batches it is fed."""
    return name.removesuffix(CROPPED).endswith(BASE_SUFFIX)


def forms_of(entries: Mapping[str, Any], name: str) -> list[str]:
    """Names under which the contestant `name` ran: fed padded batches, cropped ones, or both."""
    return [form for form in (name, name + CROPPED) if form in entries]


def contestants_of(entries: Mapping[str, Any]) -> list[str]:
    """Names of those that ran in any form, in their order."""
    return list(dict.fromkeys(name.removesuffix(CROPPED) for name in entries))


def best_form(entries: Mapping[str, Any], name: str) -> str:
    """The one of `forms_of` with the lower median latency, in the ``contestants`` object of a report."""
    return min(forms_of(entries, name), key=lambda form: float(entries[form]["latency_ms"]["p50"]))


def best_speedup(entries: Mapping[str, Any], name: str, base: str) -> float | None:
    """Paired speedup of a contestant's better form over the better form of the FP32 contestant `base`, if it ran."""
    if not forms_of(entries, base):
        return None
    speedup: float = entries[best_form(entries, name)]["speedup"][best_form(entries, base)]
    return speedup


def summarize(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and percentiles of `values`, by the rules in the module docstring."""
    summary: dict[str, float | None] = {"mean": float(np.mean(values))}
    for name, (percentile, fewest) in PERCENTILES.items():
        enough = len(values) >= fewest
        summary[name] = float(np.percentile(values, percentile, method="linear")) if enough else None
    return summary


def paired_speedup(base: Mapping[int, int], own: Mapping[int, int]) -> float:
    """Median of base / own over the rounds both hold; there is one, since everyone runs in round 0."""
    return statistics.median(base[turn] / own[turn] for turn in sorted(base.keys() & own.keys()))
