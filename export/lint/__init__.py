"""`qdq check`: a linter for quantized ONNX files on their way to TensorRT, whichever tool made them.

As a library: `lint` returns the findings and the fusion map of a graph, `fusion_map` the map alone. `layers_without`
and `broken_fusions` return the map with points taken away, to decide on a placement (`export.lint.removal`).
"""

from __future__ import annotations

from export.lint.command import check_command, check_compiled_command
from export.lint.compiled import CompiledGraph
from export.lint.findings import Finding, LintReport
from export.lint.fusion import FusedLayer, fusion_map
from export.lint.removal import broken_fusions, layers_without
from export.lint.rules import lint

__all__ = [
    "CompiledGraph",
    "Finding",
    "FusedLayer",
    "LintReport",
    "broken_fusions",
    "check_command",
    "check_compiled_command",
    "fusion_map",
    "layers_without",
    "lint",
]
