"""`qdq check`: a linter for quantized ONNX files on their way to TensorRT, whichever tool made them."""

from __future__ import annotations

from export.lint.command import check_command
from export.lint.findings import Finding, LintReport
from export.lint.fusion import FusedLayer, fusion_map
from export.lint.run import lint

__all__ = ["Finding", "FusedLayer", "LintReport", "check_command", "fusion_map", "lint"]
