"""The commands that work on one file, of a work directory or of any other tool: check, estimate, inspect, profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from engines.targets import CPU_TARGETS, TARGETS
from qdq.base.artifacts import to_json
from qdq.base.choices import PRECISION_HINTS
from qdq.base.config import choice
from qdq.base.option import option, values_for
from qdq.errors import ConfigError
from qdq.pipeline.folders import CPU_ENGINES, PLAN_LAYERS, files_in, graph_in, lowered_in

if TYPE_CHECKING:
    from engines.profile.command import Subject

Answer = tuple[str, int]  # text for standard output, exit code


@dataclass(frozen=True)
class GraphOptions:
    """Options that every command on a graph has."""

    file: str = option(MISSING, "ONNX file, or work directory", metavar="FILE", positional=True)
    sequence: int = option(128, "sequence length")


@dataclass(frozen=True)
class CheckOptions(GraphOptions):
    """Options of `qdq check`."""

    target: str = option("trt11", "trt10, trt11 or rtx (TensorRT for RTX)")
    format: str = option("text", "text, json or sarif")
    strict: bool = option(False, "accuracy and performance findings fail too (default: errors only)")
    sm: int = option(75, "compute capability, 75 to 121 (default: 75, a T4)")
    compile: bool = option(False, "let NVIDIA's compiler build it, too; needs no GPU")
    shape: str | None = option(
        None,
        "with --compile: sizes the graph leaves open, or minimum, optimum and maximum (default: 40 x --sequence)",
        metavar="BxS[,BxS,BxS]",
    )


@dataclass(frozen=True)
class EstimateOptions(GraphOptions):
    """Options of `qdq estimate`."""

    device: str = option("t4", "t4, a100, a30, l4 or h200")
    batch: int = option(40, "batch")
    predict: bool = option(False, "predict the kernels even where NVIDIA's compiler is installed")


@dataclass(frozen=True)
class InspectOptions(GraphOptions):
    """Options of `qdq inspect`."""

    file: str = option(MISSING, "layer_info.json of the plan, or work directory", metavar="FILE", positional=True)
    sm: int = option(75, "compute capability, 75 to 121 (default: 75, a T4)")
    model: str | None = option(None, "graph the plan was built from (default: model.onnx beside FILE)", metavar="ONNX")


@dataclass(frozen=True)
class ProfileOptions:
    """Options of `qdq profile`, which takes several engines to compare them."""

    file: tuple[str, ...] = option(
        MISSING,
        "OpenVINO .xml, .onnx, or work directory; several are shown side by side",
        metavar="[LABEL=]FILE",
        positional=True,
    )
    engine: str | None = option(None, "runs .onnx files: onnxruntime or openvino (default: onnxruntime)")
    batch: int = option(40, "batch")
    sequence: int = option(128, "sequence length")
    threads: int = option(0, "inference threads (default: 0, which is all cores)")
    precision_hint: str = option("f32", "what OpenVINO computes outside INT8", metavar="P", choices=PRECISION_HINTS)
    rounds: int = option(10, "runs that count")
    static: bool = option(False, "compile OpenVINO's engines for exactly this shape")
    steps: bool = option(False, "the first FILE is model.qdq.onnx: profile it after every lowering pass")
    output: str | None = option(
        None, "folder for profile.json, layers.json and profile.png (default: not written)", metavar="DIR"
    )


def run_file_command(command: str, typed: Mapping[str, Any], as_json: bool) -> Answer:
    """Run `command` with the options as parsed. Raises QdqError."""
    options, run = FILE_COMMANDS[command]
    return run(options(**typed), as_json)


def _check(options: CheckOptions, _: bool) -> Answer:
    """Lint the Q/DQ of any ONNX file for TensorRT."""
    from export.lint import check_command
    from qdq.base.screen import Screen

    options = replace(options, file=str(graph_in(Path(options.file))))
    if options.compile:
        return _check_compiled(options)
    if options.shape is not None:
        raise ConfigError("--shape: only --compile needs sizes; the linter takes --sequence")
    with Screen().stage("check", brief=True):
        return check_command(
            Path(options.file),
            options.target,
            options.sm,
            options.format,
            strict=options.strict,
            sequence=options.sequence,
        )


def _check_compiled(options: CheckOptions) -> Answer:
    """Lint, and compile for the same compute capability."""
    from export.lint import check_compiled_command
    from export.lint.limits import Platform
    from qdq.cli.compiling import compile_file, shapes_of

    shapes = shapes_of(options.shape or f"40x{options.sequence}")
    return check_compiled_command(
        Path(options.file),
        Platform(options.target, options.sm, options.sequence),
        partial(compile_file, sm=options.sm, shapes=shapes),
        options.format,
        strict=options.strict,
    )


def _estimate(options: EstimateOptions, as_json: bool) -> Answer:
    """The time a lowered graph would take on an NVIDIA device, from the analytical model."""
    from engines.estimate import compiled_kernels, estimate, find_device, render_estimate
    from engines.tensorrt_rtx import missing
    from qdq.base.screen import Screen

    device, model = find_device(options.device), lowered_in(Path(options.file))
    layers = _fusion_map(model, device.compute_capability, options.sequence)
    shape = options.batch, options.sequence
    if options.predict or missing():
        kernels = None if options.predict else compiled_kernels(model, device, *shape)  # says why there are none
    else:
        with Screen().stage("compile") as stage:
            kernels = compiled_kernels(model, device, *shape)
            stage.say(kernels.about)
    report = estimate(layers, device.name, *shape, kernels)
    return (to_json(report) if as_json else render_estimate(report)), 0


def _inspect(options: InspectOptions, as_json: bool) -> Answer:
    """A built plan's layers against the fusion map of the graph it was built from."""
    from engines.tensorrt import inspect_command
    from qdq.base.screen import Screen

    (layer_info, *_) = files_in(Path(options.file), PLAN_LAYERS, "a plan that was built on a GPU leaves it")
    if not layer_info.is_file() or layer_info.suffix != ".json":
        what = "is no JSON file" if layer_info.is_file() else "is not a file"
        raise ConfigError(f"{layer_info}: {what}; give the layer_info.json that a build leaves beside its plan")
    model = Path(options.model) if options.model else layer_info.with_name("model.onnx")
    with Screen().stage("inspect", brief=True):
        layers = _fusion_map(model, options.sm, options.sequence)
        return inspect_command(layer_info, layers, "json" if as_json else "text")


def _profile(options: ProfileOptions, as_json: bool) -> Answer:
    """Per-layer times of CPU engines by their own counters; with `steps`, after every pass of the lowering."""
    from engines.profile.command import ProfileSettings, profile_command, subjects_of
    from qdq.base.screen import Screen

    settings = ProfileSettings(**values_for(ProfileSettings, options))
    output = Path(options.output) if options.output else None
    with TemporaryDirectory(prefix="qdq-profile-") as scratch, Screen().stage("profile", undisturbed=True) as stage:
        if options.steps:
            subjects = _steps(options.file, options.engine or CPU_TARGETS[0], Path(scratch))
        else:
            subjects = subjects_of(_engines(options.file), options.engine, settings.static)
        return profile_command(subjects, settings, output, as_json, stage.progress), 0


def _engines(named: Sequence[str]) -> tuple[str, ...]:
    """Engines as named; a work directory's stand for it."""
    found: list[str] = []
    for name in named:
        label, _, place = name.rpartition("=")
        inside = files_in(Path(place), CPU_ENGINES, "make an engine with 'qdq build --target openvino'")
        found += [f"{label}={path}" if label else str(path) for path in inside]
    return tuple(found)


def _steps(files: Sequence[str], target: str, scratch: Path) -> list[Subject]:
    """The canonical graph, the graph after every pass that changes it, the last one for a static shape, other files."""
    from engines.profile.command import Subject, subjects_of
    from export.passes import lowered_step_by_step

    choice(target, CPU_TARGETS, "--engine")
    canonical = Path(files[0])
    if not canonical.is_file():
        raise ConfigError(f"{canonical}: is not a file; --steps takes a canonical graph, build/<model>/model.qdq.onnx")
    steps = lowered_step_by_step(canonical, target, scratch)
    found = [Subject(name, path, target) for name, path in steps.items()]
    if TARGETS[target].static:
        found.append(replace(found[-1], label="static shape", static=True))
    return [*found, *subjects_of(files[1:], target, static=False)]


def _fusion_map(model: Path, sm: int, sequence: int) -> Any:
    from export.lint import fusion_map
    from export.lint.command import read_model

    if not model.is_file():
        raise ConfigError(f"{model}: is not a file; give an ONNX graph, such as build/<model>/tensorrt/model.onnx")
    return fusion_map(read_model(model), sm, sequence)


# Command -> its options and its function.
FILE_COMMANDS: Mapping[str, tuple[type[Any], Callable[[Any, bool], Answer]]] = {
    "check": (CheckOptions, _check),
    "estimate": (EstimateOptions, _estimate),
    "profile": (ProfileOptions, _profile),
    "inspect": (InspectOptions, _inspect),
}
