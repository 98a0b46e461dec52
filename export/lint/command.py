"""The work of `qdq check` without the command line: file in, text and exit code out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from export.lint import compiled as compiler
from export.lint.findings import LintReport
from export.lint.graph import LARGE
from export.lint.limits import MIN_SM, Platform
from export.lint.render import as_sarif, as_text
from export.lint.rules import lint
from qdq.base.artifacts import to_json
from qdq.base.config import choice
from qdq.errors import ConfigError, ExportError

CLEAN, FOUND = 0, 1
LARGEST = 1 << 31  # bytes of a protobuf

FORMATS: Mapping[str, Callable[[LintReport, str], str]] = {
    "text": as_text,
    "json": lambda report, file: to_json({"file": file, **report.as_json()}),
    "sarif": lambda report, file: to_json(as_sarif(report, file)),
}


def check_command(
    path: Path,
    target: str,
    sm: int = MIN_SM,
    format: str = "text",
    *,
    strict: bool = False,
    sequence: int = 128,
) -> tuple[str, int]:
    """Lint an ONNX file; returns what to print and the exit code.

    The code is 0 without errors, 1 with any; with `strict`, accuracy and performance findings count as well. Notes
    never do. Raises ConfigError for a wrong option or a path that is no file, ExportError for a file that is not ONNX.
    """
    render = FORMATS[choice(format, FORMATS, "--format")]
    report = lint(read_model(path), target, sm, sequence)
    return render(report, str(path)), FOUND if report.fails(strict) else CLEAN


def check_compiled_command(
    path: Path,
    platform: Platform,
    compile: Callable[[Path], compiler.CompiledGraph],
    format: str = "text",
    *,
    strict: bool = False,
) -> tuple[str, int]:
    """Lint an ONNX file as `check_command` does and let `compile` build it: its account follows the linter's report.

    A graph that the compiler refuses counts as an error. Raises what `check_command` and `compile` raise.
    """
    choice(format, FORMATS, "--format")
    report = lint(read_model(path), platform.target, platform.sm, platform.sequence)
    built = compile(path)
    failed = built.refused or report.fails(strict)
    if format == "json":
        text = to_json({"file": str(path), **report.as_json(), "compiled": built.as_json(report)})
    elif format == "sarif":
        text = to_json(compiler.as_sarif(report, built, str(path)))
    else:
        text = f"{as_text(report, str(path))}\n{compiler.as_text(report, built)}"
    return text, FOUND if failed else CLEAN


def read_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file; of external data only tensors small enough to be scales or shapes."""
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; give the path of an ONNX file")
    if path.stat().st_size >= LARGEST:
        raise ExportError(f"{path}: is over 2 GiB, which no protobuf holds; save it with its weights as external data")
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise ExportError(f"{path}: cannot be read as ONNX ({error}); export it again") from error
    if not model.graph.node:
        raise ExportError(f"{path}: holds no ONNX graph; give an ONNX file, not an engine or a checkpoint")
    for tensor in model.graph.initializer:
        small = np.prod(tensor.dims, dtype=np.int64) <= LARGE
        if small and tensor.data_location == TensorProto.EXTERNAL:
            _load_external(tensor, path)
    return model


def _load_external(tensor: TensorProto, path: Path) -> None:
    try:
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ExportError(
            f"{path}: the external data of '{tensor.name}' cannot be read ({error}); copy it beside the file"
        ) from error
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]
