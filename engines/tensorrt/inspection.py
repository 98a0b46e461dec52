"""`qdq inspect`: the table of an engine's layers, and the verdict against the prediction; at most 80 columns."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engines.tensorrt.comparison import PredictedLayer, Verdict, verdict
from engines.tensorrt.kernels import Kernel, KernelTensor, kernels_of, load_layer_info
from qdq.base.artifacts import to_json
from qdq.base.config import choice
from qdq.base.screen import WIDTH

NAME, KIND, TYPES = 34, 12, 15  # columns of the table; the output column takes the rest
SHOWN = 8  # differences of one kind listed in the text; the JSON has all
FORMATS = ("text", "json")
AS_PREDICTED, DIFFERENT = 0, 1
TITLES = {
    "gemm": "multiplications in another precision",
    "attention": "attention blocks fused otherwise",
    "residual": "residual adds with a float operand",
    "copy": "layers that only copy or convert",
}


def inspect_command(
    layer_info_path: Path, predicted: Sequence[PredictedLayer] = (), format: str = "text"
) -> tuple[str, int]:
    """Text or JSON of an engine's layers, with the verdict when there is a prediction; and the exit code.

    The code is 1 when the engine differs from the prediction, else 0. Raises ConfigError for an unknown format,
    DeployError for a file that cannot be read, BuildError for one that is no detailed layer information.
    """
    choice(format, FORMATS, "--format")
    layer_info = load_layer_info(layer_info_path)
    kernels = kernels_of(layer_info)
    judged = verdict(layer_info, predicted) if predicted else None
    code = DIFFERENT if judged and not judged.as_predicted else AS_PREDICTED
    if format == "json":
        layers = [_layer(kernel) for kernel in kernels]
        return to_json({"layers": layers, "verdict": judged.as_json() if judged else None}), code
    lines = [*_table(kernels), *(["", *_verdict(judged)] if judged else [])]
    return "\n".join(lines) + "\n", code


def _layer(kernel: Kernel) -> dict[str, Any]:
    """One entry of the JSON's ``layers``; a tactic that the inspector does not name is empty."""
    return {
        "layer": kernel.name,
        "kind": kernel.kind,
        "tactic": kernel.tactic,
        "inputs": [tensor.precision for tensor in kernel.inputs],
        "outputs": [tensor.precision for tensor in kernel.outputs],
        "nodes": list(kernel.nodes),
    }


def _table(kernels: Sequence[Kernel]) -> Iterator[str]:
    """One line per layer, and under it its tactic and its ONNX nodes."""
    yield _columns("layer", "type", "input", "output")
    for kernel in kernels:
        yield _columns(kernel.name, kernel.kind, _counted(kernel.inputs), _counted(kernel.outputs))
        if kernel.tactic:
            yield f"  tactic {_shorten(kernel.tactic, WIDTH - 9)}"
        if kernel.nodes and kernel.nodes != (kernel.name,):
            more = f" and {len(kernel.nodes) - 1} more" if len(kernel.nodes) > 1 else ""
            yield f"  nodes  {_shorten(kernel.nodes[0], WIDTH - 9 - len(more))}{more}"
    yield f"{len(kernels)} engine layers"


def _columns(name: str, kind: str, inputs: str, outputs: str) -> str:
    rest = WIDTH - NAME - KIND - TYPES - 3
    cells = (_shorten(name, NAME), _shorten(kind, KIND), _shorten(inputs, TYPES), _shorten(outputs, rest))
    return f"{cells[0]:<{NAME}} {cells[1]:<{KIND}} {cells[2]:<{TYPES}} {cells[3]}".rstrip()


def _counted(tensors: Sequence[KernelTensor]) -> str:
    """``int8 fp16x2``: every precision once, in order of appearance."""
    found = Counter(tensor.precision for tensor in tensors)
    return " ".join(name + (f"x{count}" if count > 1 else "") for name, count in found.items())


def _verdict(judged: Verdict) -> Iterator[str]:
    """Coverage, then every kind of difference with its layers."""
    yield "the engine against its prediction"
    for item in judged.coverage:
        yield f"  {item.kind:<22}{item.running} of {item.predicted}"
        if item.predicted and item.kind == "INT8 fused attention":
            yield "    by q, k and v; the type of the probabilities inside never shows"
    for kind, title in TITLES.items():
        found = [difference for difference in judged.differences if difference.kind == kind]
        if not found:
            continue
        yield f"  {title}: {len(found)}"
        for difference in found[:SHOWN]:
            yield f"    {_shorten(difference.name, WIDTH - 4)}"
            told = difference.found if kind == "copy" else f"predicted {difference.predicted}; {difference.found}"
            yield from textwrap.wrap(told, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
        if len(found) > SHOWN:
            yield f"    and {len(found) - SHOWN} more"
    count = len(judged.differences)
    yield "as predicted" if judged.as_predicted else f"{count} difference{'s' * (count != 1)}"


def _shorten(text: str, width: int) -> str:
    """`text` in at most `width` columns; what is left out of the middle becomes an ellipsis."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"
