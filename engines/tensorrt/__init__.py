"""TensorRT target: probe the machine, write the build files, build, run, and read the precision back.

TensorRT 10.x and 11.x. Nothing here imports `tensorrt` or `polygraphy` before a function needs it, so the package
imports on a machine that has neither.
"""

from __future__ import annotations

from engines.tensorrt.availability import Probe, probe
from engines.tensorrt.builder import build, collect
from engines.tensorrt.precision import load_layer_info, read_back
from engines.tensorrt.runner import TensorRTRunner
from engines.tensorrt.script import write_build_files
from engines.tensorrt.settings import TensorRTSettings

__all__ = [
    "Probe",
    "TensorRTRunner",
    "TensorRTSettings",
    "build",
    "collect",
    "load_layer_info",
    "probe",
    "read_back",
    "write_build_files",
]
