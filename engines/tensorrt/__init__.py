"""TensorRT target: probe the machine, write the build files, build, run, read the precision back, inspect.

TensorRT 10.x and 11.x. Nothing here imports `tensorrt` or `polygraphy` before a function needs it, so the package
imports on a machine that has neither.
"""

from __future__ import annotations

from engines.tensorrt.availability import Probe, probe
from engines.tensorrt.builder import build, collect, unavailable
from engines.tensorrt.comparison import verdict
from engines.tensorrt.inspection import inspect_command
from engines.tensorrt.kernels import load_layer_info
from engines.tensorrt.precision import read_back
from engines.tensorrt.runner import TensorRTRunner
from engines.tensorrt.script import write_build_files
from engines.tensorrt.settings import TensorRTSettings

__all__ = [
    "Probe",
    "TensorRTRunner",
    "TensorRTSettings",
    "build",
    "collect",
    "inspect_command",
    "load_layer_info",
    "probe",
    "read_back",
    "unavailable",
    "verdict",
    "write_build_files",
]
