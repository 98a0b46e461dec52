"""Stage 8, bench: INT8 and the FP32 baselines, interleaved, on full rows and on texts as they are; benchmark.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.targets import BASELINE, CPU_TARGETS, TARGETS
from qdq.base.artifacts import read_json, write_json
from qdq.base.screen import Stage
from qdq.errors import Unavailable
from qdq.loading.runner import TorchRunner
from qdq.pipeline.run import FLOAT, Run
from qdq.pipeline.stages.build import MEASURED, engine_options, open_engine
from qdq.pipeline.stages.load import check_shape
from qdq.pipeline.stages.variants import bodies, open_variant

if TYPE_CHECKING:
    from engines.bench import Contestant

WORKLOAD_BATCHES = 5  # different batches the benchmark rotates through
BENCH_SAMPLES = 100  # most per contestant; p99 needs that many
LEAST_SECONDS = (
    1.0  # of a race, when opening the engines has taken the budget; everyone gets three samples all the same
)


def workload(run: Run, count: int, sequence: int | None = None, full: bool = False) -> list[Any]:
    """Benchmark feeds of the run's batch and sequence (or another one) from text that was not calibrated on.

    Texts have their own lengths, padded to the sequence; with `full` they are joined until every token is real.
    """
    from qdq.text.workload import full_rows, workload_of_shape

    loaded, options = run.reference, run.options
    sequence = sequence or options.sequence
    check_shape(loaded, options.batch, sequence)
    shape = loaded.task.shape(options.batch, sequence)
    make = full_rows if full else workload_of_shape
    return make(loaded.tokenizer, run.evaluation.records, loaded.inputs, shape, count)


def bench(run: Run, stage: Stage, in_full: bool = False) -> Sequence[Path]:
    """Stage 8: INT8 and the FP32 baselines, interleaved; benchmark.json out.

    Two races within the time budget, opening the engines included, or `in_full`: as many samples as p99 needs, however
    long that takes. A budget that is small for the model leaves out what nothing is decided by: torch, a rival's engine
    on full rows, and FP32 fed padded texts, which take as long as full rows do.

    The first race has full rows, the documented figure; the second, the report's ``texts``, the texts as they are,
    which everyone gets padded to the sequence and cropped to the longest of the batch.
    """
    from engines.bench import BenchSettings, best_speedup, both_forms, is_base
    from engines.bench import bench as race

    options, begun = run.options, time.perf_counter()

    def part(share: float) -> float | None:
        """A share of the budget that is left, in seconds."""
        left = options.bench_seconds - (time.perf_counter() - begun)
        return None if in_full else max(share * left, LEAST_SECONDS)

    settings = BenchSettings(
        batch=options.batch,
        sequence=options.sequence,
        samples=BENCH_SAMPLES,
        threads=options.threads,
        streams=options.streams if options.mode == "throughput" else 1,
    )
    # Everyone at the documented shape, then everyone on the texts.
    rows, feeds = workload(run, WORKLOAD_BATCHES, full=True), workload(run, WORKLOAD_BATCHES)
    shape = rows[0]["input_ids"].shape
    share = measured_share(run, shape)
    entries = contestants(run, stage, shape, share)
    report = race(_spared(run, entries), rows, replace(settings, budget_s=part(1 / 2)), run.versions, _half(stage, 0))
    # torch is the slowest and nothing deploys it: a budget is not spent on it twice.
    field = entries if in_full else [entry for entry in entries if entry.engine != "torch"]
    # Warmed up by every batch: engines prepare for each length when they first see it.
    every = replace(settings, budget_s=part(1), warmup=len(feeds))
    forms = [replace(form, spare=is_base(form.name) and not form.cropped) for form in both_forms(field)]
    texts = race(forms, feeds, every, run.versions, _half(stage, 1))
    report |= {} if share is None else {MEASURED: share}
    report["texts"] = {key: value for key, value in texts.items() if key not in ("machine", "versions")}
    # The result, and the line about it.
    base = f"{BASELINE}-fp32"
    speedups = (best_speedup(part["contestants"], "int8", base) for part in (report, texts))
    full, real = (f"{speedup:.2f} x" for speedup in speedups)
    latency = report["contestants"]["int8"]["latency_ms"]["p50"]
    stage.say(f"{latency:.1f} ms, {full} ONNX Runtime FP32; {real} on texts of their own lengths")
    return (write_json(run.target / "benchmark.json", report),)


def _spared(run: Run, entries: Sequence[Contestant]) -> list[Contestant]:
    """The contestants, of which torch and the rivals' engines may be left out."""
    spare = {"torch-fp32", *(f"int8-{rival}" for rival in rivals_beside(run))}
    return [replace(entry, spare=entry.name in spare) for entry in entries]


def _half(stage: Stage, part: int) -> Callable[[int, int], None]:
    """Progress of the first (0) or second (1) of two equal parts of a stage."""
    return lambda done, total: stage.progress(part * total + done, 2 * total)


def measured_share(run: Run, shape: tuple[int, ...]) -> float | None:
    """Share of real tokens from which the run's engine is faster without packing; None when it has no two forms."""
    if not TARGETS[run.options.target].static or not read_json(run.target / "build.json")["settings"].get("packing"):
        return None
    from engines.crossover import measure_full
    from engines.interface import interface

    return measure_full(lambda full: open_engine(run, shape, full), interface(run.lowered)[0], shape)


def contestants(run: Run, stage: Stage, shape: tuple[int, ...], full: float | None = None) -> list[Contestant]:
    """INT8, its rivals', the float engines of the same and of all CPU runtimes, and torch, all with as many threads.

    The run's own engine runs without its packing from the share `full` of real tokens on.

    The run's own engine is called int8, a rival's int8-onnxruntime or int8-openvino. Inputs have `shape`; engines that
    can be compiled for one shape are, INT8 and float. In throughput mode each runs as many batches at once as there are
    streams.
    """
    from engines.bench import Contestant

    options = run.options
    entries = [Contestant("int8", options.target, open_engine(run, shape, full))]
    for rival in rivals_beside(run):
        entries.append(Contestant(f"int8-{rival}", rival, open_engine(run.aimed_at(rival), shape)))
    if TARGETS[options.target].gpu:
        for body in bodies(run):
            plan = open_variant(run, stage, body)
            entries.append(Contestant(f"{options.target}-{body}", options.target, plan))
    # FP32 engines of every CPU runtime that is installed; those of the run's own and the common baseline must be.
    plain = replace(engine_options(run, shape), precision_hint="f32")
    for name in (BASELINE,) if TARGETS[options.target].gpu else CPU_TARGETS:
        try:
            runner = TARGETS[name].open(run.work.path / FLOAT, plain)
        except Unavailable:
            if name in (options.target, BASELINE):
                raise
            continue
        entries.append(Contestant(f"{name}-fp32", name, runner))
    entries.append(Contestant("torch-fp32", "torch", TorchRunner(run.reference.module(), options.threads)))
    return requests_at_once(run, entries)


def rivals_beside(run: Run) -> tuple[str, ...]:
    """The targets whose engines have raced with the run's own, for `--target auto`."""
    return tuple(target for target in run.rivals if target != run.options.target)


def requests_at_once(run: Run, entries: Sequence[Contestant]) -> list[Contestant]:
    """The contestants as they are, or in throughput mode each with as many batches at once as there are streams."""
    from engines.bench import InFlight

    if run.options.mode != "throughput":
        return list(entries)
    return [replace(entry, run=InFlight(entry.run, run.options.streams)) for entry in entries]
