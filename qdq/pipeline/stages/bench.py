"""Stage 8, bench: INT8 and the FP32 baselines, interleaved; benchmark.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.targets import BASELINE, TARGETS
from qdq.base.artifacts import write_json
from qdq.base.screen import Stage
from qdq.load.runner import TorchRunner
from qdq.pipeline.run import FLOAT, Run
from qdq.pipeline.stages.build import engine_options, open_engine
from qdq.pipeline.stages.load import check_shape
from qdq.pipeline.stages.variants import bodies, open_variant

if TYPE_CHECKING:
    from engines.bench import Contestant

WORKLOAD_BATCHES = 5  # different batches the benchmark rotates through
BENCH_SAMPLES = 100  # most per contestant; p99 needs that many


def workload(run: Run, count: int, sequence: int | None = None) -> list[Any]:
    """Benchmark feeds of the run's batch and sequence (or another one) from text that was not calibrated on."""
    from qdq.text.encode import workload_of_shape

    loaded, options = run.reference, run.options
    sequence = sequence or options.sequence
    check_shape(loaded, options.batch, sequence)
    shape = loaded.task.shape(options.batch, sequence)
    return workload_of_shape(loaded.tokenizer, run.evaluation.records, loaded.inputs, shape, count)


def bench(run: Run, stage: Stage, in_full: bool = False) -> Sequence[Path]:
    """Stage 8: INT8 and the FP32 baselines, interleaved; benchmark.json out.

    Within the run's time budget, or `in_full`: as many samples as p99 needs, however long that takes.
    """
    from engines.bench import BenchSettings
    from engines.bench import bench as race

    options = run.options
    settings = BenchSettings(
        batch=options.batch,
        sequence=options.sequence,
        budget_s=None if in_full else options.bench_seconds,
        samples=BENCH_SAMPLES,
        threads=options.threads,
        streams=options.streams if options.mode == "throughput" else 1,
    )
    feeds = workload(run, WORKLOAD_BATCHES)
    report = race(contestants(run, stage, feeds[0]["input_ids"].shape), feeds, settings, run.versions, stage.progress)
    int8 = report["contestants"]["int8"]
    stage.say(f"{int8['latency_ms']['p50']:.1f} ms, {int8['speedup']['onnxruntime-fp32']:.2f} x ONNX Runtime FP32")
    return (write_json(run.target / "benchmark.json", report),)


def contestants(run: Run, stage: Stage, shape: tuple[int, ...]) -> list[Contestant]:
    """INT8, the same runtime's float engines, ONNX Runtime FP32 and torch FP32, all with the same number of threads.

    Inputs have `shape`; engines that can be compiled for one shape are, INT8 and float. In throughput mode each runs as
    many batches at once as there are streams.
    """
    from engines.bench import Contestant, InFlight

    options = run.options
    entries = [Contestant("int8", options.target, open_engine(run, shape))]
    if TARGETS[options.target].gpu:
        for body in bodies(run):
            plan = open_variant(run, stage, body)
            entries.append(Contestant(f"{options.target}-{body}", options.target, plan))
        floats = [BASELINE]
    else:
        floats = list(dict.fromkeys((options.target, BASELINE)))
    plain = replace(engine_options(run, shape), precision_hint="f32")
    for name in floats:
        runner = TARGETS[name].open(run.work.path / FLOAT, plain)
        entries.append(Contestant(f"{name}-fp32", name, runner))
    entries.append(Contestant("torch-fp32", "torch", TorchRunner(run.reference.module(), options.threads)))
    if options.mode == "throughput":
        return [replace(entry, run=InFlight(entry.run, options.streams)) for entry in entries]
    return entries
