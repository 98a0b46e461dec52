"""Build the TensorRT engine with polygraphy, or say exactly what this machine lacks for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from engines.interface import interface
from engines.tensorrt.availability import probe
from engines.tensorrt.precision import load_layer_info, read_back
from engines.tensorrt.script import LAYER_INFO, PLAN, SCRIPT, write_build_files
from engines.tensorrt.settings import TensorRTSettings, profile_shapes
from engines.types import BuiltEngine, MatmulNames, TensorInfo
from qdq.artifacts import atomic_path, write_text
from qdq.errors import BuildError, Unavailable

logger = logging.getLogger(__name__)


def build(lowered: Path, folder: Path, settings: TensorRTSettings, names: MatmulNames | None = None) -> BuiltEngine:
    """Write the build files, build the plan of `lowered` (an ONNX file in `folder`), read its precision back.

    `names` are the matrix multiplications to look for; None for a floating-point engine. Takes minutes on a GPU.
    Raises Unavailable, after the build files are written, when this machine cannot build; BuildError when TensorRT
    refuses the graph; ConfigError for impossible settings; DeployError when the folder cannot be written.
    """
    inputs, _ = interface(lowered)
    write_build_files(lowered, folder, inputs, settings)
    found = probe()
    if not found.ready:
        raise Unavailable(unavailable(folder, found.missing))
    plan, information = _build_plan(lowered, inputs, settings)
    with atomic_path(folder / PLAN) as partial, partial.open("wb") as handle:
        handle.write(plan)
    write_text(folder / LAYER_INFO, information)
    return collect(lowered, folder, settings, names)


def unavailable(folder: Path, missing: Sequence[str]) -> str:
    """The message of "not on this machine": every obstacle, and the one command that finishes the job elsewhere."""
    obstacles = "".join(f"\n  - {sentence}" for sentence in missing)
    return (
        f"this machine cannot build a TensorRT engine:{obstacles}\n"
        f"Everything before this is done; copy {folder} to a GPU machine and run: python {SCRIPT}"
    )


def collect(lowered: Path, folder: Path, settings: TensorRTSettings, names: MatmulNames | None = None) -> BuiltEngine:
    """The engine that lies in `folder`, built here or by build_engine.py elsewhere; needs no GPU.

    Raises BuildError when `folder` holds no plan, or layer information without precisions.
    """
    plan, layer_info = folder / PLAN, folder / LAYER_INFO
    if not plan.is_file():
        raise BuildError(f"{plan} does not exist; build it with: python {folder / SCRIPT}")
    inputs, outputs = interface(lowered)
    report = None
    if names is not None:
        known = (names.linears, names.matmuls, names.floats, names.unquantized)
        report = read_back(load_layer_info(layer_info), *known)
    files = (plan, layer_info) if layer_info.is_file() else (plan,)
    recorded = {**settings.as_json(), "tensorrt": _tensorrt_version()}
    return BuiltEngine("tensorrt", files, inputs, outputs, report, recorded)


def _build_plan(lowered: Path, inputs: Sequence[TensorInfo], settings: TensorRTSettings) -> tuple[Any, str]:
    """The serialized plan and the engine inspector's JSON text."""
    import tensorrt as trt
    from polygraphy.backend.trt import (
        CreateConfig,
        EngineBytesFromNetwork,
        EngineFromBytes,
        NetworkFromOnnxPath,
        Profile,
    )
    from polygraphy.exception import PolygraphyException

    shapes = Profile()
    for name, (low, best, high) in profile_shapes(inputs, settings).items():
        shapes.add(name, min=low, opt=best, max=high)
    timing_cache = settings.timing_cache
    create_config = CreateConfig(
        tf32=True,  # TensorRT's own default, also trtexec's; polygraphy would switch it off
        profiles=[shapes],
        profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
        memory_pool_limits={trt.MemoryPoolType.WORKSPACE: settings.workspace_bytes},
        load_timing_cache=str(timing_cache) if timing_cache and timing_cache.is_file() else None,
        builder_optimization_level=settings.optimization_level,
    )
    logger.info("building with TensorRT %s; this takes some minutes", trt.__version__)
    try:
        parse_network = NetworkFromOnnxPath(str(lowered), strongly_typed=True)
        build_plan = EngineBytesFromNetwork(
            parse_network, config=create_config, save_timing_cache=str(timing_cache) if timing_cache else None
        )
        plan = build_plan()
        load_engine = EngineFromBytes(plan)
        engine = load_engine()
        inspector = engine.create_engine_inspector()
        return plan, str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    except (PolygraphyException, RuntimeError, TypeError) as error:
        # The last two come from TensorRT's bindings: shapes that do not fit, a builder the driver is too old for.
        raise BuildError(
            f"TensorRT {trt.__version__} cannot build {lowered}: {error}; its own messages are above, and "
            f"'python {SCRIPT}' beside the model shows them again"
        ) from error


def _tensorrt_version() -> str | None:
    """Version of the installed tensorrt, None where a plan from another machine is only collected."""
    try:
        return metadata.version("tensorrt")
    except metadata.PackageNotFoundError:
        return None
