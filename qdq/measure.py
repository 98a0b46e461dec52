"""Stages 7 to 9: the engine against the floating-point model, the benchmark, and the Triton repository."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.artifacts import PARTIAL_PREFIX, write_json
from qdq.engine import PLAN, open_engine
from qdq.errors import DataError
from qdq.run import CANONICAL, CHOICES, FLOAT, Run
from qdq.screen import Stage
from qdq.stages import check_shape
from qdq.texts import label_indices
from qdq.variants import bodies, open_variant

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from engines.bench import Contestant
    from engines.types import BuiltEngine
    from qdq.model import LoadedModel

VERIFY_BATCH = 32
WORKLOAD_BATCHES = 5  # different batches the benchmark rotates through
BENCH_SAMPLES = 100  # most per contestant; p99 needs that many
LABELLED_TASKS = ("text-classification", "next-sentence-prediction", "multiple-choice")


class TorchRunner:
    """The floating-point torch model as a runner."""

    def __init__(self, loaded: LoadedModel, threads: int, module: torch.nn.Module | None = None) -> None:
        """`module` runs instead of the loaded model's own, with the same inputs and outputs."""
        import torch

        torch.set_num_threads(threads)
        self._module = loaded.module() if module is None else module
        self._outputs = loaded.outputs

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Feeds as the module names them; returns float32 arrays."""
        import torch

        with torch.inference_mode():
            results = self._module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        return {name: value.float().numpy() for name, value in zip(self._outputs, results, strict=True)}


def verify(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 7: outputs, agreement and, with labels, the task metric; accuracy.json out."""
    from engines.compare import compare
    from qdq.encode import encode_batch, encode_choices

    loaded, texts = run.reference, run.evaluation
    encode = encode_choices if loaded.task.choices else encode_batch
    batches = [
        encode(
            loaded.tokenizer,
            texts.records[start : start + VERIFY_BATCH],
            loaded.inputs,
            run.options.sequence,
            pad_to="longest",
        )
        for start in range(0, len(texts.records), VERIFY_BATCH)
    ]
    labels, why_no_metric = evaluation_labels(run, loaded)
    reference = TorchRunner(loaded, run.options.threads)
    report = compare(reference, open_engine(run), batches, loaded.task.name, labels, stage.progress)
    report |= {"source": texts.source} | ({"metric_reason": why_no_metric} if labels is None else {})
    stage.say(f"cosine {report['cosine_mean']:.4f} mean, {report['cosine_min']:.4f} worst, over {texts.source}")
    return (write_json(run.target / "accuracy.json", report),)


def evaluation_labels(run: Run, loaded: LoadedModel) -> tuple[list[int] | None, str]:
    """Class index of every evaluation text, or None and the reason why there is no metric.

    Raises DataError when the user named the label column and it does not hold the model's classes.
    """
    texts, required = run.evaluation, run.options.label_column is not None
    if loaded.task.name not in LABELLED_TASKS:
        return None, f"there is no built-in metric for {loaded.task.name} on this kind of file"
    if all(record.label is None for record in texts.records):
        reason = f"no text of {texts.source} has a label"
        if required and not texts.bundled:
            raise DataError(f"{reason}; name another --label-column, or leave it out")
        if required:  # the column is there, but the calibration took every row
            run.screen.warn(f"no task metric: {reason}; give labelled text to --eval-data (EVAL=)")
        return None, reason
    return label_indices(texts.records, loaded.labels, len(loaded.labels) or CHOICES, required)


def workload(run: Run, count: int) -> list[Any]:
    """Benchmark feeds of the run's batch and sequence from text that was not calibrated on."""
    from qdq.encode import workload_of_shape

    loaded, options = run.reference, run.options
    check_shape(loaded, options.batch, options.sequence)
    shape = (options.batch, CHOICES, options.sequence) if loaded.task.choices else (options.batch, options.sequence)
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
    )
    feeds = workload(run, WORKLOAD_BATCHES)
    report = race(contestants(run, stage, feeds[0]["input_ids"].shape), feeds, settings, run.versions, stage.progress)
    int8 = report["contestants"]["int8"]
    stage.say(f"{int8['latency_ms']['p50']:.1f} ms, {int8['speedup']['onnxruntime-fp32']:.2f} x ONNX Runtime FP32")
    return (write_json(run.target / "benchmark.json", report),)


def contestants(run: Run, stage: Stage, shape: tuple[int, ...]) -> list[Contestant]:
    """INT8, the same runtime's float engines, ONNX Runtime FP32 and torch FP32, all with the same number of threads.

    Inputs have `shape`; OpenVINO's engines, INT8 and float, are compiled for it.
    """
    from engines.bench import Contestant
    from engines.onnxruntime import OnnxRuntimeRunner, OnnxRuntimeSettings

    options = run.options
    floating = run.work.path / FLOAT
    entries = [Contestant("int8", options.target, open_engine(run, shape))]
    if options.target == "openvino":
        from engines.openvino import OpenVINORunner, OpenVINOSettings

        runner = OpenVINORunner(floating, OpenVINOSettings(options.threads, "f32", shape=shape))
        entries.append(Contestant("openvino-fp32", "openvino", runner))
    if options.target == "tensorrt":
        entries += [Contestant(f"tensorrt-{body}", "tensorrt", open_variant(run, stage, body)) for body in bodies(run)]
    session = OnnxRuntimeRunner(floating, OnnxRuntimeSettings(options.threads))
    entries.append(Contestant("onnxruntime-fp32", "onnxruntime", session))
    entries.append(Contestant("torch-fp32", "torch", TorchRunner(run.reference, options.threads)))
    return entries


def deploy(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 9: the Triton model repository, written through Triton's schema and read back."""
    from engines.triton import TritonSettings, preferred_sizes, write_repository

    options, loaded = run.options, run.reference
    backend = options.triton_backend or ("tensorrt" if options.target == "tensorrt" else "onnxruntime")
    settings = TritonSettings(
        name=run.name,
        backend=backend,  # type: ignore[arg-type]  # validated by CompileOptions
        max_batch_size=options.batch,
        preferred_batch_sizes=preferred_sizes(options.batch),
        threads=None if backend == "tensorrt" else options.threads,
        labels=loaded.labels if loaded.task.name == "text-classification" else (),
    )
    sample = {name: array[:1] for name, array in workload(run, 1)[0].items()}
    folder = run.target / "model_repository"
    for earlier in run.replaced:  # a repository is never replaced by one of another model unless that was ours too
        if earlier.name != run.name:
            shutil.rmtree(earlier, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=run.target) as scratch:
        write_repository(served_engine(run, backend, Path(scratch)), settings, sample, folder)
    stage.say(f"Triton repository for the {backend} backend, read back")
    return (folder / run.name,)


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

    lower(run.work.path / CANONICAL, target, scratch)
    return scratch / "model.onnx"
