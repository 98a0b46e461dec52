"""benchmark.json of a GPU race: the same schema as on the CPU (engines.bench.report), plus what only a GPU has.

* `samples` are launches on all streams; `rounds` are rounds of blocks; `every` is 1.
* `sequences_per_s` is measured over the wall time of the blocks: with several streams latencies overlap.
* `speedup[base]` is the median over rounds of the ratio of block medians. Bases are the contestants whose name ends in
  -fp32, -fp16 or -bf16: INT8 over FP16 is what a GPU is asked for.
* `gpu`: device, settings, clock, NVML readings, host time per launch, and the equivalent trtexec lines.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engines.bench.machine import machine
from engines.bench.report import paired_speedup, summarize
from engines.bench.workload import describe_workload
from engines.bench_gpu.settings import GpuBenchSettings
from engines.bench_gpu.timing import Samples
from qdq.base.types import Feeds

BASE_SUFFIXES = ("-fp32", "-fp16", "-bf16")


@dataclass(frozen=True)
class Measured:
    """Results of a race. Every mapping is by contestant name."""

    engines: Mapping[str, str]
    blocks: Mapping[str, Sequence[Samples]]
    device: str
    nvml: Mapping[str, Any]
    elapsed_s: float  # from the loading of the engines to the last reading
    trtexec: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # major version -> line


def benchmark(
    measured: Measured, workload: Sequence[Feeds], settings: GpuBenchSettings, versions: Mapping[str, str]
) -> dict[str, Any]:
    """The benchmark.json object. Latencies in milliseconds."""
    # Speedups pair the medians of blocks from one round, as single calls are paired on the CPU.
    medians = {name: _medians(blocks) for name, blocks in measured.blocks.items()}
    bases = {name: rounds for name, rounds in medians.items() if name.endswith(BASE_SUFFIXES)}
    contestants = {}
    for name, blocks in measured.blocks.items():
        entry = _entry(measured.engines[name], blocks, settings)
        entry["speedup"] = {base: paired_speedup(rounds, medians[name]) for base, rounds in bases.items()}
        contestants[name] = entry
    return {
        "batch": settings.batch,
        "sequence": settings.sequence,
        "threads": 0,
        "streams": settings.streams,
        "budget_s": None,
        "budget_exceeded": False,
        "elapsed_s": measured.elapsed_s,
        "rounds": max(map(len, measured.blocks.values())),
        "workload": describe_workload(workload),
        "contestants": contestants,
        "machine": machine(),
        "versions": dict(versions),
        "gpu": _gpu(measured, settings),
    }


def _gpu(measured: Measured, settings: GpuBenchSettings) -> dict[str, Any]:
    return {
        "device": measured.device,
        "clock": "CUDA events",
        "settings": settings.as_json(),
        "nvml": measured.nvml,
        "enqueue_ms": {
            name: summarize([ms for block in blocks for ms in block.enqueue_ms])
            for name, blocks in measured.blocks.items()
        },
        "trtexec": {name: dict(lines) for name, lines in measured.trtexec.items()},
    }


def _entry(engine: str, blocks: Sequence[Samples], settings: GpuBenchSettings) -> dict[str, Any]:
    latency = [ms for block in blocks for ms in block.latency_ms]
    wall_s = sum(block.wall_ms for block in blocks) / 1e3
    return {
        "engine": engine,
        "samples": len(latency),
        "every": 1,
        "warmup": settings.warmup,
        "latency_ms": summarize(latency),
        "sequences_per_s": settings.batch * len(latency) / wall_s,
    }


def _medians(blocks: Sequence[Samples]) -> dict[int, int]:
    """Round -> median latency in whole nanoseconds, at least 1 as on the CPU."""
    return {turn: max(1, round(statistics.median(block.latency_ms) * 1e6)) for turn, block in enumerate(blocks)}
