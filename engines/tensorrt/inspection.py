"""What is in a built engine, for people: one table of its layers, and the verdict against the prediction."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.tensorrt.comparison import PredictedLayer, Verdict, verdict
from engines.tensorrt.kernels import KernelTensor, kernels_of, load_layer_info
from qdq.base.artifacts import to_json
from qdq.base.config import choice

WIDTH = 80
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


@dataclass(frozen=True)
class LayerRow:
    """One layer of an engine.

    Attributes:
        layer, kind, tactic: as the inspector names them; tactic "" where it names none.
        inputs, outputs: precision of every tensor: int8, fp16, bf16, fp32, int32, … or unknown.
        nodes: the ONNX nodes it computes.
    """

    layer: str
    kind: str
    tactic: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]


def inspect_table(layer_info: Mapping[str, Any]) -> tuple[LayerRow, ...]:
    """The engine's layers in execution order, from the inspector's JSON of TensorRT 10 or 11.

    Raises BuildError when the engine was built without DETAILED profiling verbosity.
    """
    return tuple(
        LayerRow(
            layer=kernel.name,
            kind=kernel.kind,
            tactic=kernel.tactic,
            inputs=_precisions(kernel.inputs),
            outputs=_precisions(kernel.outputs),
            nodes=kernel.nodes,
        )
        for kernel in kernels_of(layer_info)
    )


def inspect_command(
    layer_info_path: Path, predicted: Sequence[PredictedLayer] = (), format: str = "text"
) -> tuple[str, int]:
    """Text or JSON of an engine's layers, with the verdict when there is a prediction; and the exit code.

    The code is 1 when the engine differs from the prediction, else 0. Raises ConfigError for an unknown format,
    DeployError for a file that cannot be read, BuildError for one that is no detailed layer information.
    """
    choice(format, FORMATS, "--format")
    layer_info = load_layer_info(layer_info_path)
    rows = inspect_table(layer_info)
    judged = verdict(layer_info, predicted) if predicted else None
    code = DIFFERENT if judged and not judged.as_predicted else AS_PREDICTED
    if format == "json":
        layers = [asdict(row) for row in rows]
        return to_json({"layers": layers, "verdict": judged.as_json() if judged else None}), code
    text = table_text(rows) + ("\n" + verdict_text(judged) if judged else "")
    return text, code


def _precisions(tensors: Sequence[KernelTensor]) -> tuple[str, ...]:
    return tuple(tensor.precision for tensor in tensors)


def table_text(rows: Sequence[LayerRow]) -> str:
    """The table for a terminal, at most 80 columns; under each layer its tactic and ONNX nodes."""
    return "\n".join(_table(rows)) + "\n"


def _table(rows: Sequence[LayerRow]) -> Iterator[str]:
    yield _columns("layer", "type", "input", "output")
    for row in rows:
        yield _columns(row.layer, row.kind, _counted(row.inputs), _counted(row.outputs))
        if row.tactic:
            yield f"  tactic {_shorten(row.tactic, WIDTH - 9)}"
        if row.nodes and row.nodes != (row.layer,):
            more = f" and {len(row.nodes) - 1} more" if len(row.nodes) > 1 else ""
            yield f"  nodes  {_shorten(row.nodes[0], WIDTH - 9 - len(more))}{more}"
    yield f"{len(rows)} engine layers"


def _columns(name: str, kind: str, inputs: str, outputs: str) -> str:
    rest = WIDTH - NAME - KIND - TYPES - 3
    cells = (_shorten(name, NAME), _shorten(kind, KIND), _shorten(inputs, TYPES), _shorten(outputs, rest))
    return f"{cells[0]:<{NAME}} {cells[1]:<{KIND}} {cells[2]:<{TYPES}} {cells[3]}".rstrip()


def _counted(precisions: Sequence[str]) -> str:
    """``int8 fp16x2``: every precision once, in order of appearance."""
    return " ".join(name + (f"x{count}" if count > 1 else "") for name, count in Counter(precisions).items())


def verdict_text(judged: Verdict) -> str:
    """The verdict for a terminal: coverage, then every kind of difference with its layers, at most 80 columns."""
    return "\n".join(_verdict(judged)) + "\n"


def _verdict(judged: Verdict) -> Iterator[str]:
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
