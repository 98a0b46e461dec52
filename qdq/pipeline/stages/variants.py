"""The same model unquantized for NVIDIA GPUs, in FP16 (or BF16) and in FP32: the baselines of its INT8 engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines.interface import graph_files, interface
from engines.targets import TARGETS
from qdq.base.artifacts import read_json, sha256_file
from qdq.base.screen import Stage
from qdq.errors import ConfigError, Unavailable
from qdq.pipeline.run import FLOAT, Run
from qdq.pipeline.stages.build import PLAN, engine_options, tensorrt_settings
from qdq.pipeline.stages.lower import ranges, short_float

if TYPE_CHECKING:
    from engines.tensorrt import TensorRTSettings
    from engines.types import Runner

PASSES = "passes.json"


def bodies(run: Run) -> tuple[str, ...]:
    """Float types of the variants, also the names of their folders: the run's own 16-bit type, and FP32 if there is."""
    exact = run.options.sm >= TARGETS[run.options.target].since.get("fp32", 0)
    return (short_float(run), "fp32") if exact else (short_float(run),)


def variants(run: Run, stage: Stage) -> Sequence[Path]:
    """Write ``<target>/<type>/`` for every type: graph, pass report, script and, where it can be built, the plan.

    Raises ConfigError for a run of another target and for what its plans cannot do, Unavailable, after everything else
    is written, where TensorRT or a GPU is missing.
    """
    from engines import tensorrt

    target, options = TARGETS[run.options.target], run.options
    if not target.gpu:
        raise ConfigError(f"--target: variants are for NVIDIA GPUs, this run is for {target.name}")
    if target.portable and (options.refit or options.strip_weights):
        raise ConfigError(
            f"--refit, --strip-weights: the compiler of {target.name} needs a GPU for them; leave them out"
        )
    written: list[Path] = []
    for body in bodies(run):
        graph = _lower(run, stage, body)
        written += [*graph_files(graph), graph.with_name(PASSES)]
        if not target.portable:  # what finishes the job on a GPU machine
            settings = tensorrt_settings(run, floating=True)
            written += tensorrt.write_build_files(graph, graph.parent, interface(graph)[0], settings)
    if not target.portable and (missing := tensorrt.probe().missing):
        raise Unavailable(tensorrt.unavailable(run.target, missing, [run.target / body for body in bodies(run)]))
    for body in bodies(run):
        written += _build(run, body, tensorrt_settings(run, floating=True))
    stage.say(f"plans in {' and '.join(bodies(run))}")
    return written


def open_variant(run: Run, stage: Stage, body: str) -> Runner:
    """The plan of one variant, ready to call; built first unless it was built, with its weights, from the present FP32
    graph.
    """
    folder = run.target / body
    report = folder / PASSES
    same = report.is_file() and read_json(report).get("fp32_sha256") == sha256_file(run.work.path / FLOAT)
    if not (same and (folder / PLAN).is_file()) or run.options.strip_weights:
        _lower(run, stage, body)
        _build(run, body, tensorrt_settings(run))
    return TARGETS[run.options.target].open(folder / PLAN, engine_options(run))


def _lower(run: Run, stage: Stage, body: str) -> Path:
    from export.passes import float_variant

    floating, folder = run.work.path / FLOAT, run.target / body
    (folder / TARGETS[run.options.target].engine).unlink(missing_ok=True)  # of an earlier graph
    float_variant(floating, body, folder, ranges(run, stage, floating, body))  # type: ignore[arg-type]  # validated
    return folder / "model.onnx"


def _build(run: Run, body: str, settings: TensorRTSettings) -> Sequence[Path]:
    graph = run.target / body / "model.onnx"
    options = replace(engine_options(run), plan=settings)
    return TARGETS[run.options.target].build(graph, graph.parent, options, None).files
