"""NVIDIA's compiler on this machine: two ordinary Python packages, and what is said where they are missing."""

from __future__ import annotations

import importlib.util
import platform
import sys
from importlib import metadata
from pathlib import Path

from qdq.errors import Unavailable

INSTALL = ".venv/bin/pip install '.[rtx]'"
# Distribution and module: the bindings, and the package whose shared objects they need.
PACKAGES = (
    ("tensorrt-rtx-cu12-bindings", "tensorrt_rtx_bindings"),
    ("onnxruntime-ep-nv-tensorrt-rtx-cu12", "onnxruntime_ep_nv_tensorrt_rtx"),
)
LIBRARIES = ("libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so")  # followed by a version


def missing() -> str | None:
    """One sentence, with the way out, when the compiler cannot run here; None when everything it needs is there."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return (
            f"NVIDIA's compiler (TensorRT for RTX) needs Linux on x86-64, this is {platform.system()} on "
            f"{platform.machine()}: use such a machine"
        )
    absent = [package for package, module in PACKAGES if importlib.util.find_spec(module) is None]
    if absent:
        return f"NVIDIA's compiler (TensorRT for RTX) is not installed, {' and '.join(absent)} missing: {INSTALL}"
    lost = [stem for stem in LIBRARIES if not list(_folder().glob(f"{stem}*"))]
    if lost:
        return f"NVIDIA's compiler (TensorRT for RTX): {' and '.join(lost)} not in {_folder()}: {INSTALL}"
    return None


def folder() -> Path:
    """Folder of the shared objects. Raises Unavailable, with one sentence, when the compiler cannot run here."""
    if (reason := missing()) is not None:
        raise Unavailable(reason)
    return _folder()


def installed_version() -> str | None:
    """Version of the compiler, without loading it; None where `missing` has a reason."""
    if missing() is not None:
        return None
    try:
        return metadata.version(PACKAGES[0][0])
    except metadata.PackageNotFoundError:
        return "unknown"  # a module without package data, such as one on PYTHONPATH


def _folder() -> Path:
    spec = importlib.util.find_spec(PACKAGES[1][1])
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(f"{PACKAGES[1][0]} has no folder: {INSTALL}")
    return Path(spec.submodule_search_locations[0])
