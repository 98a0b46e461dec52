"""Stage 9, deploy: the Triton model repository."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.instructions import int8_sums
from engines.packed import packing_beside
from engines.targets import TARGETS, EngineOptions
from qdq.base.artifacts import PARTIAL_PREFIX, read_json
from qdq.base.screen import Stage
from qdq.errors import Unavailable
from qdq.pipeline.run import CANONICAL, FLOAT, Run
from qdq.pipeline.stages.bench import rivals_beside, workload
from qdq.pipeline.stages.build import multiplications
from qdq.pipeline.stages.lower import cpu_lowering
from qdq.pipeline.verdict import float_wins

if TYPE_CHECKING:
    from engines.types import BuiltEngine
    from qdq.load.model import LoadedModel


def deploy(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 9: the Triton model repository, written through Triton's schema and read back."""
    from engines.triton import TritonSettings, bucket_model, plan_model, preferred_sizes, write_repository
    from qdq.tasks.outputs import said_of

    options = run.options
    backend = backend_of(run)
    if backend is None:
        raise Unavailable(
            f"Triton has no backend for {options.target}; --triton-backend onnxruntime serves the same model, "
            "--target tensorrt makes a plan that Triton serves"
        )
    loaded = run.reference
    settings = TritonSettings(
        name=run.name,
        backend=backend,  # type: ignore[arg-type]  # validated by CompileOptions
        max_batch_size=options.batch,
        preferred_batch_sizes=preferred_sizes(options.batch),
        instances=options.streams if options.mode == "throughput" else 1,
        threads=None if TARGETS[backend].gpu else options.threads,
        labels=class_names(loaded),
        buckets=options.buckets,
        about=said_of(loaded),
    )
    names = [bucket_model(run.name, width) for width in options.buckets] or [run.name]
    if backend == options.target and packing_beside(run.lowered) is not None:
        names.append(plan_model(run.name))
    feeds = (workload(run, 1, width)[0] for width in options.buckets or (options.sequence,))
    samples = [{name: array[:1] for name, array in batch.items()} for batch in feeds]  # one text of each length
    folder = run.target / "model_repository"
    # A repository is never replaced by one of another model, unless that was ours too.
    for earlier in run.work.written(run.record("deploy")):
        if earlier.name not in names:
            shutil.rmtree(earlier, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=run.target) as scratch:
        served = served_engine(run, backend, Path(scratch))
        write_repository(served, settings, samples, folder)
    what = f"Triton repository for the {backend} backend, {len(names)} model(s), read back"
    if serves_float(run):
        stage.say(f"{what}; in FP32, which is faster here")
    else:
        stage.say(what if TARGETS[backend].gpu else f"{what}, for {int8_sums().reach}")
    return tuple(folder / name for name in names)


def class_names(loaded: LoadedModel) -> tuple[str, ...]:
    """Class names Triton ranks by; none where the outputs are scores."""
    from qdq.tasks.heads import head_of_model

    classifies = loaded.task.name == "text-classification" and head_of_model(loaded.model).kind != "scores"
    return loaded.labels if classifies else ()


def backend_of(run: Run) -> str | None:
    """Triton's backend for this run: the one that was asked for, or the target's default; None when it has none."""
    return run.options.triton_backend or next(iter(TARGETS[run.options.target].backends), None)


def serves_float(run: Run) -> bool:
    """True when `--target auto` left the choice, and the backend's runtime is faster in FP32 than in INT8."""
    report = run.target / "benchmark.json"
    backend = backend_of(run)
    return bool(run.rivals) and backend is not None and report.is_file() and float_wins(read_json(report), backend)


def served_engine(run: Run, backend: str, scratch: Path) -> BuiltEngine:
    """The engine Triton serves: the run's own, a rival's, or for another backend one lowered and built in `scratch`.

    The FP32 engine, where `serves_float` says so.
    Built, because a graph alone is not safe where INT8 products saturate, and Triton passes on no option against that;
    lowered, because in the coding of another target ONNX Runtime would run partly in float.
    """
    from engines.interface import interface
    from engines.types import BuiltEngine

    options = EngineOptions(run.options.threads, run.options.precision_hint)
    if serves_float(run):
        return TARGETS[backend].build(run.work.path / FLOAT, scratch, options, None)
    if backend in (run.options.target, *rivals_beside(run)):
        built = run.aimed_at(backend)
        inputs, outputs = interface(built.lowered)
        files = tuple(built.target / name for name in TARGETS[backend].files)
        return BuiltEngine(backend, files, inputs, outputs, None, {})
    from export.passes import lower

    lower(run.work.path / CANONICAL, backend, scratch, options=cpu_lowering(run))
    graph = scratch / "model.onnx"
    return TARGETS[backend].build(graph, scratch, options, multiplications(graph))
