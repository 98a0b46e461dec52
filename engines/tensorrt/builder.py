"""Build the TensorRT engine where this machine can, or say exactly what it lacks; collect one built elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.interface import interface
from engines.tensorrt.availability import probe
from engines.tensorrt.kernels import load_layer_info
from engines.tensorrt.plan import build_plan
from engines.tensorrt.precision import read_back
from engines.tensorrt.script import LAYER_INFO, PLAN, SCRIPT, write_build_files
from engines.tensorrt.settings import TensorRTSettings, check_machine
from engines.types import BuiltEngine, MatmulNames
from qdq.base.artifacts import atomic_path, write_text
from qdq.base.versions import versions
from qdq.errors import BuildError, Unavailable


def build(lowered: Path, folder: Path, settings: TensorRTSettings, names: MatmulNames | None = None) -> BuiltEngine:
    """Write the build files, build the plan of `lowered` (an ONNX file in `folder`), read its precision back.

    `names` are the matrix multiplications to look for; None for a floating-point engine. Takes minutes on a GPU.
    Raises Unavailable, after the build files are written, when this machine cannot build; BuildError when TensorRT
    refuses the graph, listing the nodes; ConfigError for settings that are impossible, or impossible on this graph or
    GPU; DeployError when the folder cannot be written.
    """
    inputs, _ = interface(lowered)
    write_build_files(lowered, folder, inputs, settings)
    found = probe()
    if not found.ready:
        raise Unavailable(unavailable(folder, found.missing))
    check_machine(settings, found.capability, found.release)
    built = build_plan(lowered, inputs, settings)
    _write_bytes(folder / PLAN, built.serialized)
    write_text(folder / LAYER_INFO, built.layer_info)
    if settings.timing_cache:
        _write_bytes(settings.timing_cache, built.timings)
    return collect(lowered, folder, settings, names)


def unavailable(folder: Path, missing: Sequence[str], builds: Sequence[Path] = ()) -> str:
    """The message of "not on this machine": every obstacle, and what finishes the job elsewhere.

    `builds`: the folders inside `folder` that hold a build script each; none means that `folder` itself does.
    """
    obstacles = "".join(f"\n  - {sentence}" for sentence in missing)
    scripts = [(build.relative_to(folder) / SCRIPT).as_posix() for build in builds] or [SCRIPT]
    return (
        f"this machine cannot build a TensorRT engine:{obstacles}\n"
        f"Everything before this is done; copy {folder} to a GPU machine and run: "
        f"{' and '.join(f'python {script}' for script in scripts)}"
    )


def collect(lowered: Path, folder: Path, settings: TensorRTSettings, names: MatmulNames | None = None) -> BuiltEngine:
    """The engine that lies in `folder`, built here or by build_engine.py elsewhere; needs no GPU.

    Raises BuildError when `folder` holds no plan, or layer information without precisions.
    """
    plan, layer_info = folder / PLAN, folder / LAYER_INFO
    if not plan.is_file():
        raise BuildError(f"{plan} does not exist; build it with: python {folder / SCRIPT}")
    inputs, outputs = interface(lowered)
    report = None if names is None else read_back(load_layer_info(layer_info), names)
    files = (plan, layer_info) if layer_info.is_file() else (plan,)
    # No version where a plan from another machine is only collected.
    recorded = {**settings.as_json(), "tensorrt": versions().get("tensorrt")}
    return BuiltEngine("tensorrt", files, inputs, outputs, report, recorded)


def _write_bytes(path: Path, content: Any) -> None:
    """Write bytes, or TensorRT's host memory, which is a buffer too."""
    with atomic_path(path) as partial, partial.open("wb") as handle:
        handle.write(content)
