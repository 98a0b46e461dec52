"""The commands that work on one file and need no work directory: check, estimate, inspect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdq.artifacts import to_json
from qdq.errors import ConfigError

Answer = tuple[str, int]  # text for standard output, exit code


def run_file_command(command: str, typed: Mapping[str, Any]) -> Answer:
    """Run `command` with the options as parsed. Raises QdqError."""
    return {"check": _check, "estimate": _estimate, "inspect": _inspect}[command](typed)


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
    """What a lowered graph would take on an NVIDIA device, from the analytical model."""
    from engines.estimate import estimate, find_device, render_estimate

    device = find_device(typed["device"])
    layers = _fusion_map(Path(typed["file"]), device.compute_capability, typed["sequence"])
    report = estimate(layers, device.name, typed["batch"], typed["sequence"])
    return (to_json(report.as_json()) if typed["json"] else render_estimate(report)), 0


def _inspect(typed: Mapping[str, Any]) -> Answer:
    """A built plan's layers against the fusion map of the graph it was built from."""
    from engines.tensorrt import inspect_command

    layer_info = Path(typed["file"])
    model = Path(typed["model"]) if typed["model"] else layer_info.with_name("model.onnx")
    layers = _fusion_map(model, typed["sm"], typed["sequence"])
    return inspect_command(layer_info, layers, "json" if typed["json"] else "text")


def _fusion_map(model: Path, sm: int, sequence: int) -> Any:
    from export.lint import fusion_map
    from export.lint.command import read_model

    if not model.is_file():
        raise ConfigError(f"{model}: is not a file; give an ONNX graph, such as build/<model>/tensorrt/model.onnx")
    return fusion_map(read_model(model), sm, sequence)
