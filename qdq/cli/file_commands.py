"""The commands that work on one file and need no work directory: check, estimate, inspect, profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from engines.targets import CPU_TARGETS, TARGETS
from qdq.base.artifacts import to_json
from qdq.base.config import choice
from qdq.errors import ConfigError

if TYPE_CHECKING:
    from engines.profile.command import Subject

Answer = tuple[str, int]  # text for standard output, exit code


def run_file_command(command: str, typed: Mapping[str, Any]) -> Answer:
    """Run `command` with the options as parsed. Raises QdqError."""
    return {"check": _check, "estimate": _estimate, "inspect": _inspect, "profile": _profile}[command](typed)


def _check(typed: Mapping[str, Any]) -> Answer:
    """Lint the Q/DQ of any ONNX file for TensorRT."""
    from export.lint import check_command

    return check_command(
        Path(typed["file"]),
        typed["target"],
        typed["sm"],
        typed["format"],
        strict=typed["strict"],
        sequence=typed["sequence"],
    )


def _estimate(typed: Mapping[str, Any]) -> Answer:
    """The time a lowered graph would take on an NVIDIA device, from the analytical model."""
    from engines.estimate import estimate, find_device, render_estimate

    device = find_device(typed["device"])
    layers = _fusion_map(Path(typed["file"]), device.compute_capability, typed["sequence"])
    report = estimate(layers, device.name, typed["batch"], typed["sequence"])
    return (to_json(report) if typed["json"] else render_estimate(report)), 0


def _inspect(typed: Mapping[str, Any]) -> Answer:
    """A built plan's layers against the fusion map of the graph it was built from."""
    from engines.tensorrt import inspect_command

    layer_info = Path(typed["file"])
    if not layer_info.is_file() or layer_info.suffix != ".json":
        what = "is no JSON file" if layer_info.is_file() else "is not a file"
        raise ConfigError(f"{layer_info}: {what}; give the layer_info.json that a build leaves beside its plan")
    model = Path(typed["model"]) if typed["model"] else layer_info.with_name("model.onnx")
    layers = _fusion_map(model, typed["sm"], typed["sequence"])
    return inspect_command(layer_info, layers, "json" if typed["json"] else "text")


def _profile(typed: Mapping[str, Any]) -> Answer:
    """Per-layer times of CPU engines by their own counters; with `steps`, after every pass of the lowering."""
    from engines.profile.command import ProfileSettings, profile_command, subjects_of

    names = ("batch", "sequence", "threads", "precision_hint", "rounds", "static")
    settings = ProfileSettings(**{name: typed[name] for name in names})
    output = Path(typed["output"]) if typed["output"] else None
    if not typed["steps"]:
        subjects = subjects_of(typed["file"], typed["engine"], settings.static)
        return profile_command(subjects, settings, output, typed["json"]), 0
    with TemporaryDirectory(prefix="qdq-profile-") as scratch:
        subjects = _steps(typed["file"], typed["engine"] or CPU_TARGETS[0], Path(scratch))
        return profile_command(subjects, settings, output, typed["json"]), 0


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
