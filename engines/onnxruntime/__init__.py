"""ONNX Runtime target: build, run, and read back which multiplications run in INT8."""

from __future__ import annotations

from engines.onnxruntime.build import ENGINE, OnnxRuntimeSettings, build
from engines.onnxruntime.runner import OnnxRuntimeRunner

__all__ = ["ENGINE", "OnnxRuntimeRunner", "OnnxRuntimeSettings", "build"]
