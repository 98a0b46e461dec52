"""OpenVINO target: build the IR, run it, and read back which multiplications run in INT8."""

from __future__ import annotations

from engines.openvino.build import OpenVINOSettings, build, has_bf16
from engines.openvino.runner import OpenVINORunner

__all__ = ["OpenVINORunner", "OpenVINOSettings", "build", "has_bf16"]
