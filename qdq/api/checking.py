"""`qdq.check`: the linter for Q/DQ graphs, as a function."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.lint import Finding


def check(
    path: str | os.PathLike[str], *, target: str = "trt11", sm: int = 75, sequence: int = 128
) -> tuple[Finding, ...]:
    """Lint the Q/DQ of any ONNX file for TensorRT, as ``qdq check`` does; findings in the order of their rules.

    >>> [finding.reason for finding in qdq.check("model.onnx") if finding.severity == "error"]

    Args:
        path: an ONNX file, or a work directory, whose TensorRT graph is taken, else its canonical graph.
        target: ``trt10``, ``trt11`` or ``rtx`` (TensorRT for RTX).
        sm: the GPU's compute capability, 75 for 7.5.
        sequence: sequence length that the graph will run with.

    Raises ConfigError for a wrong option or a path that is no file, ExportError for a file that is not ONNX.
    """
    from export.lint import lint
    from export.lint.command import read_model
    from qdq.pipeline.folders import graph_in

    return lint(read_model(graph_in(Path(path).expanduser())), target, sm, sequence).findings
