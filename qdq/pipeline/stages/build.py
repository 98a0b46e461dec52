"""Stage 6, build: the engine of the run's target with a report of what runs in INT8; and opening that engine again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.targets import TARGETS, EngineOptions
from qdq.base.artifacts import read_json, write_json
from qdq.base.packing import FULL
from qdq.base.screen import Stage, wrap
from qdq.errors import BuildError, ConfigError, QdqError, Unavailable
from qdq.loading.kinds import CHOICES
from qdq.pipeline.run import Run
from qdq.pipeline.stages.compiled import compiled_proof, unproven

if TYPE_CHECKING:
    from engines.tensorrt import TensorRTSettings
    from engines.types import MatmulNames, Runner

PLAN = TARGETS["tensorrt"].engine
MEASURED = "unpacked_from"  # in benchmark.json: share of real tokens from which the engine runs without packing


def build(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 6: engine files and build.json. Raises Unavailable for a target this machine cannot build."""
    from engines.precision import summary

    # The engine, or where it cannot be built, what is known of it all the same.
    group = dynamic_group(run)
    names = multiplications(run.lowered, group)
    options = replace(engine_options(run), group=group, streams=0)
    target = TARGETS[run.options.target]
    try:
        engine = target.build(run.lowered, run.target, options, names)
    except Unavailable:
        if target.compiles:
            _prove_only(run, stage, names)
        raise
    if engine.int8 is None:
        raise BuildError(f"{run.target}: the engine reported no precisions; build it again")
    # The report.
    files = [file.relative_to(run.target).as_posix() for file in engine.files]
    report: dict[str, Any] = {"target": engine.target, "engine_files": files, "int8": engine.int8.as_json()}
    if engine.compiled is not None:
        report["compiled"] = compiled_proof(run, stage, names, tensorrt_settings(run), engine.compiled)
    written = write_json(run.target / "build.json", {**report, "settings": dict(engine.settings)})
    stage.say(summary(engine.int8))
    return written, *engine.files


def _prove_only(run: Run, stage: Stage, names: MatmulNames) -> None:
    """Leave in build.json, where the engine cannot be built, what NVIDIA's compiler makes of its graph."""
    path, settings = run.target / "build.json", tensorrt_settings(run)
    path.unlink(missing_ok=True)  # of an earlier graph
    if (reason := unproven(run)) is not None:
        run.screen.line(wrap(f"Not compiled here: {reason}"))
        return
    built: dict[str, Any] = {"target": run.options.target, "engine_files": [], "int8": None}
    proof = compiled_proof(run, stage, names, settings)
    write_json(path, {**built, "settings": settings.as_json(), "compiled": proof})


def dynamic_group(run: Run) -> int:
    """Number of inputs that share a run-time scale: the first of the target's that divides every linear's inputs.

    0 where nothing is quantized at run time, or the graph does it itself.
    """
    from engines.interface import read_model
    from export.inventory import reduction_sizes
    from qdq.pipeline.stages.lower import is_dynamic

    groups = TARGETS[run.options.target].groups
    if not groups or not is_dynamic(run):
        return 0
    sizes = reduction_sizes(read_model(run.lowered))
    return next((group for group in groups if all(size % group == 0 for size in sizes)), 0)


def open_engine(run: Run, shape: tuple[int, ...] | None = None, full: float | None = None) -> Runner:
    """The built engine of the run's target, ready to call, and tuned for inputs of `shape` where the target can.

    From the share `full` of real tokens on, it runs without its packing; None is what was measured last.

    Raises BuildError when it cannot be loaded.
    """
    target = TARGETS[run.options.target]
    options = engine_options(run, shape)
    return target.open(run.target / target.engine, options if full is None else replace(options, full=full))


def engine_options(run: Run, shape: tuple[int, ...] | None = None) -> EngineOptions:
    """Options of the run's engine, and of every other engine of the run that is opened beside it."""
    from engines.cores import numa_nodes

    options = run.options
    return EngineOptions(
        options.threads,
        options.precision_hint,
        shape,
        streams=options.streams if options.mode == "throughput" else 0,
        nodes=numa_nodes(),
        plan=tensorrt_settings(run) if TARGETS[options.target].gpu else None,
        capability=options.sm,
        full=_full(run),
    )


def _full(run: Run) -> float:
    """The share of real tokens that the last benchmark of the run's target has measured."""
    try:
        found = read_json(run.target / "benchmark.json").get(MEASURED)
    except QdqError:  # not there, or cut
        return FULL
    return found if isinstance(found, float) else FULL


def tensorrt_settings(run: Run, floating: bool = False) -> TensorRTSettings:
    """Profile around the benchmark shape and the builder's options; the timing cache is kept across builds.

    A batch without padding has the axes and limits that stage 5 has written down.

    `floating`: of a graph without Q/DQ, so that its weights may be replaced or left out.
    """
    from engines.packed import packing_beside
    from engines.tensorrt import TensorRTSettings

    # Padded batches alone have lengths to pad to, and Triton alone runs profiles of its choice
    options = run.options
    form = None if floating else packing_beside(run.lowered)
    # The profile around the benchmark's shape, and the builder's options
    return TensorRTSettings(
        batch_opt=options.batch,
        batch_max=options.batch,
        sequence_opt=options.sequence,
        sequence_max=options.sequence,
        timing_cache=Path(options.timing_cache) if options.timing_cache else run.target / "timing.cache",
        choices=CHOICES,
        buckets=() if floating or form or not TARGETS[options.target].backends else options.buckets,
        workspace_gib=options.workspace_gib,
        optimization_level=options.optimization_level,
        version_compatible=options.version_compatible,
        hardware_compatibility=options.hardware_compatibility,
        refit=options.refit and floating,
        strip_weights=options.strip_weights and floating,
        packing=form,
    )


def check_weights(stage: str, typed: Mapping[str, Any]) -> None:
    """Raise ConfigError for weights that are to be replaced in, or left out of, an INT8 plan."""
    asked = [name for name in ("refit", "strip_weights") if typed.get(name)]
    if asked and stage != "variants":
        option = f"--{asked[0].replace('_', '-')}"
        raise ConfigError(
            f"{option}: TensorRT gives up the rewrites that make INT8 fast when weights may change; leave it out, or "
            f"build the floating-point plans so with 'qdq variants {option}'"
        )


def multiplications(model: Path, group: int = 0) -> MatmulNames:
    """The matrix multiplications of a graph, by what the INT8 report counts them as. Raises BuildError."""
    from engines.interface import read_model
    from engines.types import MatmulNames, NotInt8
    from export.inventory import inventory

    found = inventory(read_model(model))
    unquantized = [
        NotInt8(name, _float_operands(found.quantized[name], group))
        for name in (*found.encoder_linear, *found.attention_matmul)
        if len(found.quantized[name]) < 2
    ]
    return MatmulNames(
        linears=found.encoder_linear,
        matmuls=found.attention_matmul,
        floats=tuple(NotInt8(name, reason) for name, reason in found.other.items()),
        unquantized=tuple(unquantized),
        computed_in=found.computed_in,
    )


def _float_operands(quantized: tuple[int, ...], group: int) -> str:
    if not quantized:
        return "the placement quantizes neither operand"
    if group and quantized == (1,):
        return f"INT8 weights; OpenVINO quantizes its input at run time by {group}, which its report does not show"
    return f"the placement leaves its {'second' if quantized == (0,) else 'first'} operand float"
