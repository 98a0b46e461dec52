"""Write what a GPU machine needs to build the engine without this project: build_engine.py and trtexec.sh."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from engines.packed import copy_into
from engines.tensorrt.settings import TensorRTSettings, axes_of, check_weights, profile_shapes
from engines.types import TensorInfo
from qdq.base.artifacts import write_text
from qdq.errors import BuildError

TEMPLATE = Path(__file__).with_name("build_template.py")
BEGIN, END = "# begin values of this model\n", "# end values of this model\n"
SCRIPT, TRTEXEC, PLAN, LAYER_INFO = "build_engine.py", "trtexec.sh", "model.plan", "layer_info.json"

TRTEXEC_HARDWARE = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}

TRTEXEC_TEXT = """\
#!/bin/sh
# Build and time the engine with NVIDIA's trtexec:  sh trtexec.sh 10   or   sh trtexec.sh 11
# (the major version of your TensorRT; set TRTEXEC= when trtexec is not on the PATH).
#
# What differs between the two lines:
#   10.x  a graph with Q/DQ needs --stronglyTyped, and latencies are only comparable with CUDA graph, spin wait and
#         no data transfers, which are all off by default.
#   11.x  is always strongly typed, and the three are on by default (--noCudaGraph, --noSpinWait and
#         --includeDataTransfers undo them); the 10.x spellings are accepted but deprecated.
# trtexec fills the inputs with random numbers: its latencies are meaningful, its outputs are not. It times the "opt"
# shapes; --shapes=... times others.
set -eu
cd "$(dirname "$0")"
major="${{1:-}}"
set -- {common}
case "$major" in
10) exec "${{TRTEXEC:-trtexec}}" "$@" --stronglyTyped --useCudaGraph --useSpinWait --noDataTransfers ;;
11) exec "${{TRTEXEC:-trtexec}}" "$@" ;;
*) echo "usage: sh trtexec.sh 10|11" >&2; exit 2 ;;
esac
"""


def write_build_files(
    lowered: Path, folder: Path, inputs: Sequence[TensorInfo], settings: TensorRTSettings
) -> list[Path]:
    """Write build_engine.py and trtexec.sh into `folder` for the model `lowered`, which must lie in it.

    `inputs` are the model's inputs, [batch, sequence] or [batch, choices, sequence]. The same arguments give the same
    bytes. Returns their paths; with them goes packing.py, which makes the inputs of a batch without padding. Raises
    ConfigError for impossible settings and for refit on a graph with Q/DQ, BuildError for inputs no encoder has or a
    model outside the folder, DeployError when the folder cannot be written.
    """
    settings.validate()
    check_weights(settings, lowered)
    if lowered.resolve().parent != folder.resolve():
        raise BuildError(f"{lowered} must lie in {folder}: that folder is copied as a whole to the GPU machine")
    return [
        *copy_into(folder, settings.packing),
        write_text(folder / SCRIPT, build_script(lowered.name, inputs, settings)),
        write_text(folder / TRTEXEC, trtexec_script(lowered.name, inputs, settings)),
    ]


def build_script(model: str, inputs: Sequence[TensorInfo], settings: TensorRTSettings) -> str:
    """Text of build_engine.py: the template with this model's values in place of its examples."""
    axes = {tensor.name: list(axes_of(tensor)) for tensor in inputs}
    used = {axis for shape in axes.values() for axis in shape}
    ranges = {axis: list(sizes) for axis, sizes in settings.ranges().items() if axis in used}
    cache = settings.timing_cache.name if settings.timing_cache else None
    values = (
        f"MODEL = {model!r}\n"
        f"INPUTS: dict[str, list[int | str]] = {axes!r}\n"
        f"RANGES: dict[str, list[int]] = {ranges!r}  # axis: min, opt, max\n"
        f"BUCKETS: list[int] = {list(settings.buckets)!r}  # sequences with a profile of their own\n"
        f"WORKSPACE_GIB = {settings.workspace_gib!r}\n"
        f"OPTIMIZATION_LEVEL = {settings.optimization_level!r}\n"
        f"TIMING_CACHE: str | None = {cache!r}\n"
        f"VERSION_COMPATIBLE = {settings.version_compatible!r}\n"
        f"HARDWARE_COMPATIBILITY = {settings.hardware_compatibility!r}\n"
        f"REFIT, STRIP_WEIGHTS = {settings.refit!r}, {settings.strip_weights!r}\n"
    )
    head, rest = TEMPLATE.read_text(encoding="utf-8").split(BEGIN)
    return f"{head}{BEGIN}{values}{END}{rest.split(END)[1]}"


def trtexec_script(model: str, inputs: Sequence[TensorInfo], settings: TensorRTSettings) -> str:
    """Text of trtexec.sh, with one line for 10.x and one for 11.x."""
    options = [
        f"--onnx={model}",
        f"--saveEngine={PLAN}",
        *_profiles(inputs, settings),
        f"--memPoolSize=workspace:{round(settings.workspace_gib * 1024)}",  # MiB
        f"--builderOptimizationLevel={settings.optimization_level}",
        "--profilingVerbosity=detailed",
        f"--exportLayerInfo={LAYER_INFO}",
        "--percentile=50,90,95,99",
    ]
    if settings.timing_cache:
        options.append(f"--timingCacheFile={settings.timing_cache.name}")
    options += _portability(settings)
    return TRTEXEC_TEXT.format(common=" \\\n    ".join(map(shlex.quote, options)))


def _profiles(inputs: Sequence[TensorInfo], settings: TensorRTSettings) -> list[str]:
    """Shape ranges of every profile; several are told apart by ``--profile``."""
    found = []
    for number, one in enumerate(settings.profiles()):
        shapes = profile_shapes(inputs, one)
        found += [f"--profile={number}"] if settings.buckets else []
        for which, kind in enumerate(("min", "opt", "max")):
            listed = ",".join(f"{name}:{'x'.join(map(str, sizes[which]))}" for name, sizes in shapes.items())
            found.append(f"--{kind}Shapes={listed}")
    return found


def _portability(settings: TensorRTSettings) -> list[str]:
    """trtexec's spellings, the same in 10.x and 11.x (sameComputeCapability from 10.9 on)."""
    asked = {
        "--versionCompatible": settings.version_compatible,
        "--refit": settings.refit,
        "--stripWeights": settings.strip_weights,
        "--skipInference": settings.strip_weights,  # without weights there is nothing to time
    }
    hardware = TRTEXEC_HARDWARE.get(settings.hardware_compatibility)
    return [
        *(option for option, wanted in asked.items() if wanted),
        *([f"--hardwareCompatibilityLevel={hardware}"] if hardware else []),
    ]
