"""Stage 9, deploy: the Triton model repository."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from engines.instructions import int8_sums
from engines.onnxruntime.guard import refuse_negative_ids
from engines.packed import packing_beside
from engines.targets import TARGETS, EngineOptions
from engines.triton import bucket_model, plan_model
from qdq.base.artifacts import PARTIAL_PREFIX, read_json
from qdq.base.choices import RAW_REPOSITORY, REPOSITORY
from qdq.base.screen import Stage
from qdq.errors import Unavailable
from qdq.pipeline.run import CANONICAL, FLOAT, Run
from qdq.pipeline.stages.bench import rivals_beside, workload
from qdq.pipeline.stages.build import multiplications
from qdq.pipeline.stages.deploy_text import (
    embedding_of,
    profiled_buckets,
    refusal,
    require_profile,
    text_form,
    tokenizer_of,
)
from qdq.pipeline.stages.lower import cpu_lowering
from qdq.pipeline.verdict import float_wins

if TYPE_CHECKING:
    from engines.types import BuiltEngine
    from qdq.loading.model import LoadedModel

# Backend -> what makes a graph refuse ids that it would read from the end of its tables
GUARDS = {"onnxruntime": refuse_negative_ids}


def deploy(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 9: the Triton repository that takes text; one of token ids where that is asked for, or all there is.

    Raises Unavailable when Triton has no backend for the target's engines.
    """
    options = run.options
    if backend_of(run) is None:
        raise Unavailable(
            f"Triton has no backend for {options.target}; --triton-backend onnxruntime serves the same model, "
            "--target tensorrt makes a plan that Triton serves"
        )
    if TARGETS[options.target].gpu:
        require_profile(run.target, options.batch, options.sequence)
    reason = refusal(run.reference) if TARGETS[options.target].backends else f"Triton has no {options.target} backend"
    wanted = options.raw_inputs or options.buckets or options.triton_backend
    # A repository is never replaced by one of another model, unless that was ours too.
    names = {run.name, plan_model(run.name), *(bucket_model(run.name, width) for width in options.buckets)}
    for earlier in run.work.written(run.record("deploy")):
        if earlier.name not in names or (earlier.parent.name == RAW_REPOSITORY and not wanted):
            shutil.rmtree(earlier, ignore_errors=True)
            with suppress(OSError):  # holds another model
                earlier.parent.rmdir()
    written: list[Path] = []
    with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=run.target) as scratch:
        if reason is None:
            written += _deploy_text(run, stage, Path(scratch))
        if reason is not None or wanted:
            written += _deploy_raw(run, stage, Path(scratch), run.target / (RAW_REPOSITORY if written else REPOSITORY))
    if reason is not None:
        stage.say(f"it takes token ids: {reason}")
    return tuple(written)


def _deploy_text(run: Run, stage: Stage, scratch: Path) -> Sequence[Path]:
    """The repository of texts, around the engine that was verified and timed."""
    from engines.triton import TritonSettings, write_text_repository

    options, target = run.options, TARGETS[run.options.target]
    settings = TritonSettings(
        name=run.name,
        backend="tensorrt" if target.gpu else target.name,  # type: ignore[arg-type]  # has one: its backends say so
        max_batch_size=options.batch,
        instances=options.streams if options.mode == "throughput" else 1,
        max_queue_delay_us=options.queue_delay,
        queue_size=options.queue_size,
        queue_timeout_ms=options.queue_timeout,
        cache=options.response_cache,
        buckets=profiled_buckets(run.target, options.buckets, stage) if target.gpu else (),
        about=embedding_of(run.reference),
    )
    # Around the run's own engine, never another one's
    engine = served_engine(run, target.name, scratch)
    form = text_form(run, engine)
    folder = run.target / REPOSITORY
    models = write_text_repository(engine, form, tokenizer_of(run.reference), settings, folder)
    stage.say(
        f"Triton repository that takes text: {form.task} by the {target.name} engine{_float_note(run)}, read back"
    )
    return [folder / name for name in models]


def _deploy_raw(run: Run, stage: Stage, scratch: Path, folder: Path) -> Sequence[Path]:
    """The repository of token ids, for one of Triton's own backends."""
    from engines.triton import TritonSettings, write_repository
    from qdq.tasks.outputs import said_of

    options, loaded, backend = run.options, run.reference, backend_of(run) or ""
    settings = TritonSettings(
        name=run.name,
        backend=backend,  # type: ignore[arg-type]  # validated by CompileOptions
        max_batch_size=options.batch,
        instances=options.streams if options.mode == "throughput" else 1,
        threads=None if TARGETS[backend].gpu else options.threads,
        queue_size=options.queue_size,
        queue_timeout_ms=options.queue_timeout,
        cache=options.response_cache,
        labels=class_names(loaded),
        buckets=options.buckets,
        tables=tables_of(loaded),
        about=said_of(loaded),
    )
    names = [bucket_model(run.name, width) for width in options.buckets] or [run.name]
    if backend == options.target and packing_beside(run.lowered) is not None:
        names.append(plan_model(run.name))
    feeds = (workload(run, 1, width)[0] for width in options.buckets or (options.sequence,))
    samples = [{name: array[:1] for name, array in batch.items()} for batch in feeds]  # one text of each length
    raw = scratch / "raw"
    raw.mkdir()
    engine = served_engine(run, backend, raw)
    if guard := GUARDS.get(backend):
        engine = guard(engine, scratch / "guarded")
    write_repository(engine, settings, samples, folder)
    reach = "" if TARGETS[backend].gpu or _float_note(run) else f", for {int8_sums().reach}"
    what = f"Triton repository for the {backend} backend, {len(names)} model(s), read back"
    stage.say(f"{what}{_float_note(run, backend)}{reach}")
    return [folder / name for name in names]


def _float_note(run: Run, backend: str | None = None) -> str:
    return "; in FP32, which is faster here" if serves_float(run, backend or run.options.target) else ""


def class_names(loaded: LoadedModel) -> tuple[str, ...]:
    """Class names Triton ranks by; none where the outputs are scores."""
    from qdq.tasks.heads import head_of_model

    classifies = loaded.task.name == "text-classification" and head_of_model(loaded.model).kind != "scores"
    return loaded.labels if classifies else ()


def tables_of(loaded: LoadedModel) -> dict[str, int]:
    """Rows of the tables that the ids of a model's inputs are looked up in."""
    config = loaded.model.config
    rows = {"input_ids": config.vocab_size, "token_type_ids": getattr(config, "type_vocab_size", None)}
    return {name: int(count) for name, count in rows.items() if name in loaded.inputs and count}


def backend_of(run: Run) -> str | None:
    """Triton's backend for this run: the one that was asked for, or the target's default; None when it has none."""
    return run.options.triton_backend or next(iter(TARGETS[run.options.target].backends), None)


def serves_float(run: Run, backend: str) -> bool:
    """True when `--target auto` left the choice, and the backend's runtime is faster in FP32 than in INT8."""
    report = run.target / "benchmark.json"
    return bool(run.rivals) and report.is_file() and float_wins(read_json(report), backend)


def served_engine(run: Run, backend: str, scratch: Path) -> BuiltEngine:
    """The engine Triton serves: the run's own, a rival's, or for another backend one lowered and built in `scratch`.

    The FP32 engine, where `serves_float` says so.
    Built, because a graph alone is not safe where INT8 products saturate, and Triton passes on no option against that;
    lowered, because in the coding of another target ONNX Runtime would run partly in float.
    """
    from engines.interface import interface
    from engines.types import BuiltEngine

    options = EngineOptions(run.options.threads, run.options.precision_hint)
    if serves_float(run, backend):
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
