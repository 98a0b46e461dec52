"""Findings of a compile as objects: coverage, accuracy and benchmark, from the JSON files of its work directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from qdq.pipeline.verdict import INT8, verdict
from qdq.report.facts import Coverage as Coverage
from qdq.report.facts import NotInt8 as NotInt8


@dataclass(frozen=True)
class Metric:
    """A task metric of both models. `drop_points` is FP32 minus INT8 in points of 100, with its 95 % interval."""

    name: str
    fp32: float
    int8: float
    drop_points: float
    drop_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Accuracy:
    """Distance of the engine from the FP32 model on text that was not calibrated on.

    Attributes:
        samples: texts compared.
        cosine_mean, cosine_min: of the two models' outputs per text, None for a model with one number a text.
        agreement: share of equal answers, None for tasks without answers; `agreement_unit` says of what.
        metric: the metric that decides, None without labels; then `metric_reason` says why.
        source: the sentence that names the data.
    """

    samples: int
    cosine_mean: float | None
    cosine_min: float | None
    agreement: float | None
    agreement_unit: str | None
    metric: Metric | None
    metric_reason: str | None
    source: str

    @classmethod
    def read(cls, report: Mapping[str, Any]) -> Self:
        """From accuracy.json."""
        found = report["metric"]
        if found is not None:
            low_high = found.get("drop_interval")
            interval = (low_high[0], low_high[1]) if low_high else None
            found = Metric(found["name"], found["fp32"], found["int8"], found["drop_points"], interval)
        names = ("samples", "cosine_mean", "cosine_min", "agreement", "agreement_unit", "metric_reason", "source")
        return cls(metric=found, **{name: report[name] for name in names})


@dataclass(frozen=True)
class Timing:
    """One contestant's time for a batch, in milliseconds; a percentile that its samples do not give is None."""

    engine: str
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    samples: int
    sequences_per_s: float
    speedup: Mapping[str, float]  # times faster than each FP32 contestant, median of ratios within a round

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Self:
        """From one contestant of benchmark.json."""
        latency = entry["latency_ms"]
        times = latency["p50"], latency["p90"], latency["p99"]
        return cls(entry["engine"], *times, entry["samples"], entry["sequences_per_s"], dict(entry["speedup"]))


@dataclass(frozen=True)
class Benchmark:
    """INT8 beside FP32 engines, timed in turns in one run.

    Attributes:
        batch, sequence: shape of a batch.
        full_rows: by contestant, with every token real.
        texts: by contestant, with texts of their own lengths; names ending in ``-cropped`` had batches without the
            columns that are padding only.
        speedup: of INT8 over the fastest FP32 contestant on texts, each in its better form; above 1 INT8 is faster.
        best_fp32: the name of that contestant.
    """

    batch: int
    sequence: int
    full_rows: Mapping[str, Timing]
    texts: Mapping[str, Timing]
    speedup: float
    best_fp32: str

    @property
    def int8(self) -> Timing:
        """The compiled engine on full rows."""
        return self.full_rows[INT8]

    @classmethod
    def read(cls, report: Mapping[str, Any]) -> Self:
        """From benchmark.json."""
        rows = {name: Timing.read(entry) for name, entry in report["contestants"].items()}
        texts = report.get("texts", {}).get("contestants", {})
        found = verdict(report)
        timed = {name: Timing.read(entry) for name, entry in texts.items()}
        return cls(report["batch"], report["sequence"], rows, timed, found.texts, found.best)
