"""Stages 7 to 9: the engine against the floating-point model, the benchmark, and the Triton repository."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.artifacts import write_json
from qdq.errors import DeployError
from qdq.stages import CANONICAL, CHOICES, FLOAT, WORKLOAD_BATCHES, Run
from qdq.screen import Stage
from qdq.texts import Texts, evaluation_texts, label_indices

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from engines.bench import Contestant
    from engines.types import BuiltEngine, Runner
    from qdq.model import LoadedModel

VERIFY_BATCH = 32
LABELLED_TASKS = ("text-classification", "next-sentence-prediction", "multiple-choice")


class TorchRunner:
    """The floating-point torch model as a runner."""

    def __init__(self, loaded: LoadedModel, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._module = loaded.module()
        self._outputs = loaded.outputs

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Feeds as the module names them; returns float32 arrays."""
        import torch

        with torch.inference_mode():
            results = self._module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        return {name: value.float().numpy() for name, value in zip(self._outputs, results, strict=True)}


def open_engine(run: Run) -> Runner:
    """The built engine of the run's target, ready to call."""
    options = run.options
    if options.target == "openvino":
        from engines.openvino import OpenVINORunner, OpenVINOSettings

        settings = OpenVINOSettings(options.threads, options.precision_hint)
        return OpenVINORunner(run.target / "model.xml", settings)
    if options.target == "onnxruntime":
        from engines.onnxruntime import OnnxRuntimeRunner, OnnxRuntimeSettings

        return OnnxRuntimeRunner(run.target / "model.onnx", OnnxRuntimeSettings(options.threads))
    from engines.tensorrt import TensorRTRunner

    return TensorRTRunner(run.target / "model.plan")


def verify(run: Run, stage: Stage) -> dict[str, Any]:
    """Stage 7: outputs, agreement and, with labels, the task metric; accuracy.json out."""
    from engines.compare import compare
    from qdq.encode import encode_batch, encode_choices

    loaded = run.reference
    texts = evaluation_texts(run.options, loaded.task.name)
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
    labels, why_no_metric = _labels(run, loaded, texts)
    reference = TorchRunner(loaded, run.options.threads)
    report = compare(reference, open_engine(run), batches, loaded.task.name, labels, stage.progress)
    report |= {"source": texts.source} | ({"metric_reason": why_no_metric} if labels is None else {})
    write_json(run.target / "accuracy.json", report)
    stage.say(f"cosine {report['cosine_mean']:.4f} mean, {report['cosine_min']:.4f} worst, over {texts.source}")
    return report


def _labels(run: Run, loaded: LoadedModel, texts: Texts) -> tuple[list[int] | None, str]:
    if loaded.task.name not in LABELLED_TASKS:
        return None, f"there is no built-in metric for {loaded.task.name} on this kind of file"
    classes = len(loaded.labels) or CHOICES
    return label_indices(texts.records, loaded.labels, classes, required=run.options.label_column is not None)


def workload(run: Run, count: int = WORKLOAD_BATCHES) -> list[Any]:
    """Benchmark feeds of the run's batch and sequence from text that was not calibrated on."""
    from qdq.encode import workload_of_shape

    loaded, options = run.reference, run.options
    texts = evaluation_texts(options, loaded.task.name)
    shape = (options.batch, CHOICES, options.sequence) if loaded.task.choices else (options.batch, options.sequence)
    return workload_of_shape(loaded.tokenizer, texts.records, loaded.inputs, shape, count)


def bench(run: Run, stage: Stage, budget_s: float | None, samples: int) -> dict[str, Any]:
    """Stage 8: INT8 and the FP32 baselines, interleaved; benchmark.json out."""
    from engines.bench import BenchSettings
    from engines.bench import bench as race

    options = run.options
    settings = BenchSettings(
        batch=options.batch,
        sequence=options.sequence,
        budget_s=budget_s,
        samples=samples,
        threads=options.threads,
    )
    report = race(contestants(run), workload(run), settings, run.work.manifest["versions"], stage.progress)
    write_json(run.target / "benchmark.json", report)
    int8 = report["contestants"]["int8"]
    stage.say(f"{int8['latency_ms']['p50']:.1f} ms, {int8['speedup']['onnxruntime-fp32']:.2f} x ONNX Runtime FP32")
    return report


def contestants(run: Run) -> list[Contestant]:
    """INT8, the same runtime's FP32, ONNX Runtime FP32 and torch FP32, all with the same number of threads."""
    from engines.bench import Contestant
    from engines.onnxruntime import OnnxRuntimeRunner, OnnxRuntimeSettings

    options = run.options
    floating = run.work.path / FLOAT
    entries = [Contestant("int8", options.target, open_engine(run))]
    if options.target == "openvino":
        from engines.openvino import OpenVINORunner, OpenVINOSettings

        runner = OpenVINORunner(floating, OpenVINOSettings(options.threads, "f32"))
        entries.append(Contestant("openvino-fp32", "openvino", runner))
    if options.target == "tensorrt":
        entries.append(Contestant("tensorrt-fp32", "tensorrt", _tensorrt_fp32(run)))
    session = OnnxRuntimeRunner(floating, OnnxRuntimeSettings(options.threads))
    entries.append(Contestant("onnxruntime-fp32", "onnxruntime", session))
    entries.append(Contestant("torch-fp32", "torch", TorchRunner(run.reference, options.threads)))
    return entries


def _tensorrt_fp32(run: Run) -> Runner:
    """The FP32 graph as a plan of its own, in a folder of its own so that it replaces nothing."""
    import shutil

    from engines import tensorrt
    from qdq.stages import tensorrt_settings

    folder = run.target / "fp32"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run.work.path / FLOAT, folder / "model.onnx")
    tensorrt.build(folder / "model.onnx", folder, tensorrt_settings(run))
    return tensorrt.TensorRTRunner(folder / "model.plan")


def deploy(run: Run, stage: Stage) -> Path:
    """Stage 9: the Triton model repository, written through Triton's schema and read back."""
    from engines.triton import TritonSettings, preferred_sizes, write_repository

    options, loaded = run.options, run.reference
    backend = options.triton_backend or ("tensorrt" if options.target == "tensorrt" else "onnxruntime")
    settings = TritonSettings(
        name=read_name(run),
        backend=backend,  # type: ignore[arg-type]  # validated by CompileOptions
        max_batch_size=options.batch,
        preferred_batch_sizes=preferred_sizes(options.batch),
        threads=None if backend == "tensorrt" else options.threads,
        labels=loaded.labels if loaded.task.name == "text-classification" else (),
    )
    sample = {name: array[:1] for name, array in workload(run, 1)[0].items()}
    folder = run.target / "model_repository"
    with tempfile.TemporaryDirectory(prefix="qdq-triton-") as scratch:
        write_repository(served_engine(run, backend, Path(scratch)), settings, sample, folder)
    stage.say(f"Triton repository for the {backend} backend, read back")
    return folder


def served_engine(run: Run, backend: str, scratch: Path) -> BuiltEngine:
    """The engine Triton serves. The onnxruntime backend gets the graph as lowered for ONNX Runtime, whatever the
    target: it computes the same values, and the other coding would run partly in float there.
    """
    from engines.interface import interface
    from engines.types import BuiltEngine

    target = run.options.target
    inputs, outputs = interface(run.target / "model.onnx")
    if backend == "tensorrt":
        files: tuple[Path, ...] = (run.target / "model.plan",)
    elif backend == target == "openvino":
        files = (run.target / "model.xml", run.target / "model.bin")
    else:
        files = (_lowered_for(run, backend, scratch),)
    return BuiltEngine(target if backend == target else backend, files, inputs, outputs, None, {})


def _lowered_for(run: Run, target: str, scratch: Path) -> Path:
    if target == run.options.target:
        return run.target / "model.onnx"
    from export.passes import lower

    lower(run.work.path / CANONICAL, target, scratch)
    return scratch / "model.onnx"


def read_name(run: Run) -> str:
    """The model's short name, as load recorded it."""
    name = run.work.manifest.get("model", {}).get("name")
    if not isinstance(name, str):
        raise DeployError(f"{run.work.path / 'manifest.json'}: names no model; run 'qdq compile' or 'qdq calibrate' first")
    return name


