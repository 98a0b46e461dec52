"""Stages 7 to 9: the engine against the floating-point model, the benchmark, and the Triton repository."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import PARTIAL_PREFIX, write_json
from qdq.base.screen import Stage
from qdq.errors import DataError
from qdq.load.runner import TorchRunner
from qdq.pipeline.run import CANONICAL, CHOICES, FLOAT, Run
from qdq.pipeline.stages.build import PLAN, onnxruntime_settings, open_engine, openvino_settings
from qdq.pipeline.stages.variants import bodies, open_variant
from qdq.stages import check_shape, cpu_lowering
from qdq.tasks.closeness import compared

if TYPE_CHECKING:
    from engines.bench import Contestant
    from engines.types import BuiltEngine
    from qdq.load.model import LoadedModel
    from qdq.tasks.evaluation import Evaluation, Scores

VERIFY_BATCH = 32
WORKLOAD_BATCHES = 5  # different batches the benchmark rotates through
BENCH_SAMPLES = 100  # most per contestant; p99 needs that many


def verify(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 7: outputs, agreement and, with labels, the task metric of both sides; accuracy.json out."""
    from engines.compare import compare

    loaded = run.reference
    evaluation = evaluation_for(run, loaded)
    floating = evaluation.reader(TorchRunner(loaded.module(), run.options.threads))
    engine = evaluation.reader(open_engine(run))
    report = compare(floating, engine, evaluation.feeds, loaded.task.name, progress=stage.progress)
    report |= {"source": run.evaluation.source, "notes": list(evaluation.notes)}
    report |= task_metrics(floating.scores(), engine.scores(), evaluation.reason)
    stage.say(
        f"cosine {report['cosine_mean']:.4f} mean, {report['cosine_min']:.4f} worst, over {run.evaluation.source}"
    )
    return (write_json(run.target / "accuracy.json", report),)


def task_metrics(floating: Scores, engine: Scores, reason: str) -> dict[str, Any]:
    """accuracy.json's ``metric`` (the one that decides), ``metrics`` and ``metric_reason`` (why there is none)."""
    if not floating.metrics:
        return {"metric": None, "metrics": {}, "metric_reason": reason}
    both, main = compared(floating, engine), engine.main
    return {"metric": {"name": main, **both[main]}, "metrics": both, "metric_reason": None}


def evaluation_for(run: Run, loaded: LoadedModel) -> Evaluation:
    """The evaluation texts as feeds and labels of `loaded`'s task.

    Raises DataError when the user named the label column and it does not hold the model's classes.
    """
    from qdq.tasks.loading import EvaluationSettings, evaluation_of

    texts, required = run.evaluation, run.options.label_column is not None
    settings = EvaluationSettings(run.options.sequence, VERIFY_BATCH, required=required and not texts.bundled)
    evaluation = evaluation_of(texts.records, loaded, settings, texts.source)
    if required and not evaluation.labelled and all(record.label is None for record in texts.records):
        reason = f"no text of {texts.source} has a label"
        if not texts.bundled:
            raise DataError(f"{reason}; name another --label-column, or leave it out")
        # the column is there, but the calibration took every row
        run.screen.warn(f"no task metric: {reason}; give labelled text to --eval-data (EVAL=)")
    return evaluation


def workload(run: Run, count: int, sequence: int | None = None) -> list[Any]:
    """Benchmark feeds of the run's batch and sequence (or another one) from text that was not calibrated on."""
    from qdq.text.encode import workload_of_shape

    loaded, options = run.reference, run.options
    sequence = sequence or options.sequence
    check_shape(loaded, options.batch, sequence)
    shape = (options.batch, CHOICES, sequence) if loaded.task.choices else (options.batch, sequence)
    return workload_of_shape(loaded.tokenizer, run.evaluation.records, loaded.inputs, shape, count)


def bench_in_budget(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 8 inside compile."""
    return bench(run, stage, run.options.bench_seconds)


def bench_in_full(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 8 on its own: as many samples as p99 needs, however long that takes."""
    return bench(run, stage, None)


def bench(run: Run, stage: Stage, budget_s: float | None) -> Sequence[Path]:
    """INT8 and the FP32 baselines, interleaved; benchmark.json out."""
    from engines.bench import BenchSettings
    from engines.bench import bench as race

    options = run.options
    settings = BenchSettings(
        batch=options.batch,
        sequence=options.sequence,
        budget_s=budget_s,
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

    Inputs have `shape`; OpenVINO's engines, INT8 and float, are compiled for it. In throughput mode each runs as many
    batches at once as there are streams.
    """
    from engines.bench import Contestant, InFlight
    from engines.onnxruntime import OnnxRuntimeRunner

    options = run.options
    floating = run.work.path / FLOAT
    entries = [Contestant("int8", options.target, open_engine(run, shape))]
    if options.target == "openvino":
        from engines.openvino import OpenVINORunner

        runner = OpenVINORunner(floating, replace(openvino_settings(run, shape), precision_hint="f32"))
        entries.append(Contestant("openvino-fp32", "openvino", runner))
    if options.target == "tensorrt":
        entries += [Contestant(f"tensorrt-{body}", "tensorrt", open_variant(run, stage, body)) for body in bodies(run)]
    session = OnnxRuntimeRunner(floating, onnxruntime_settings(run))
    entries.append(Contestant("onnxruntime-fp32", "onnxruntime", session))
    entries.append(Contestant("torch-fp32", "torch", TorchRunner(run.reference.module(), options.threads)))
    if options.mode == "throughput":
        return [replace(entry, run=InFlight(entry.run, options.streams)) for entry in entries]
    return entries


def deploy(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 9: the Triton model repository, written through Triton's schema and read back."""
    from engines.triton import TritonSettings, bucket_model, preferred_sizes, write_buckets, write_repository

    options, loaded = run.options, run.reference
    backend = options.triton_backend or ("tensorrt" if options.target == "tensorrt" else "onnxruntime")
    settings = TritonSettings(
        name=run.name,
        backend=backend,  # type: ignore[arg-type]  # validated by CompileOptions
        max_batch_size=options.batch,
        preferred_batch_sizes=preferred_sizes(options.batch),
        instances=options.streams if options.mode == "throughput" else 1,
        threads=None if backend == "tensorrt" else options.threads,
        labels=loaded.labels if loaded.task.name == "text-classification" else (),
        buckets=options.buckets,
    )
    names = [bucket_model(run.name, width) for width in options.buckets] or [run.name]
    samples = {width: _sample(run, width) for width in options.buckets or (options.sequence,)}
    folder = run.target / "model_repository"
    for earlier in run.replaced:  # a repository is never replaced by one of another model unless that was ours too
        if earlier.name not in names:
            shutil.rmtree(earlier, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=run.target) as scratch:
        served = served_engine(run, backend, Path(scratch))
        if options.buckets:
            write_buckets(served, settings, samples, folder)
        else:
            write_repository(served, settings, samples[options.sequence], folder)
    stage.say(f"Triton repository for the {backend} backend, {len(names)} model(s), read back")
    return tuple(folder / name for name in names)


def _sample(run: Run, sequence: int) -> dict[str, Any]:
    """One text as feeds of `sequence` tokens."""
    return {name: array[:1] for name, array in workload(run, 1, sequence)[0].items()}


def served_engine(run: Run, backend: str, scratch: Path) -> BuiltEngine:
    """The engine Triton serves. The onnxruntime backend gets the graph as lowered for ONNX Runtime, whatever the
    target: it computes the same values, and the other coding would run partly in float there.
    """
    from engines.interface import interface
    from engines.types import BuiltEngine

    inputs, outputs = interface(run.lowered)
    if backend == "tensorrt":
        files: tuple[Path, ...] = (run.target / PLAN,)
    elif backend == run.options.target == "openvino":
        files = (run.target / "model.xml", run.target / "model.bin")
    else:
        files = (_lowered_for(run, backend, scratch),)
    return BuiltEngine(backend, files, inputs, outputs, None, {})


def _lowered_for(run: Run, target: str, scratch: Path) -> Path:
    if target == run.options.target == "onnxruntime":
        from engines.onnxruntime import ENGINE

        return run.target / ENGINE
    if target == run.options.target:
        return run.lowered
    from export.passes import lower

    lower(run.work.path / CANONICAL, target, scratch, options=cpu_lowering(run))
    return scratch / "model.onnx"
