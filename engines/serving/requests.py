"""A request of a text model: its tensors and parameters as rows of texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engines.serving.answers import check_dimensions
from engines.serving.fault import Fault
from engines.serving.form import QA, UIE, TextForm
from engines.serving.tokens import Text

CUTS = {"error": False, "cut": True}
PARAMETERS = ("truncation", "dimensions")


@dataclass(frozen=True)
class Input:
    """One input of the text model, all strings; its dims without the batch."""

    name: str
    dims: tuple[int, ...] = (1,)
    optional: bool = False


def inputs_of(form: TextForm) -> tuple[Input, ...]:
    """Inputs of a form's task, in order."""
    if form.task == QA:
        return (Input("QUESTION"), Input("CONTEXT"))
    if form.task == UIE:
        return (Input("PROMPT"), Input("CONTEXT"))
    if form.task == "multiple-choice":
        return (Input("TEXT"), Input("CHOICES", (-1,)))
    if form.task == "next-sentence-prediction":
        return (Input("TEXT"), Input("TEXT_PAIR"))
    if form.task == "text-classification":
        return (Input("TEXT"), Input("TEXT_PAIR", optional=True))
    return (Input("TEXT"),)


@dataclass(frozen=True)
class Asked:
    """One request: its samples, each a text or as many as it has choices, and what was asked of the answers."""

    samples: Sequence[Sequence[Text]]
    dimensions: int | None


def read(form: TextForm, tensors: Mapping[str, Any], parameters: str) -> Asked:
    """The request whose inputs are arrays of bytes [rows, …] and whose parameters are JSON. Raises Fault."""
    asked = _parameters(form, parameters)
    cut = asked["truncation"]
    columns = {name: _strings(name, array) for name, array in tensors.items() if array is not None}
    missing = [wanted.name for wanted in inputs_of(form) if wanted.name not in columns and not wanted.optional]
    if missing:
        raise Fault(f"input {missing[0]} is missing; this model takes {', '.join(i.name for i in inputs_of(form))}")
    counts = {name: len(rows) for name, rows in columns.items()}
    if len(set(counts.values())) != 1 or not max(counts.values()):
        raise Fault(f"inputs hold {counts} rows; give as many of each, at least one")
    rows = zip(*columns.values(), strict=True)
    samples = [_sample(form, dict(zip(columns, row, strict=True)), number, cut) for number, row in enumerate(rows)]
    return Asked(samples, asked["dimensions"])


def _sample(form: TextForm, row: Mapping[str, Sequence[str]], number: int, cut: bool) -> Sequence[Text]:
    """Texts of one row."""
    where = f"row {number}"
    if form.task == QA:
        return (Text(row["QUESTION"][0].strip(), row["CONTEXT"][0], where, cut),)
    if form.task == UIE:
        return (Text(row["PROMPT"][0], row["CONTEXT"][0], where, cut),)
    if form.choices:
        if not row["CHOICES"]:
            raise Fault(f"{where}: CHOICES is empty; give at least one")
        return [
            Text(row["TEXT"][0], choice, f"{where}, choice {place}", cut) for place, choice in enumerate(row["CHOICES"])
        ]
    return (Text(row["TEXT"][0], row["TEXT_PAIR"][0] if "TEXT_PAIR" in row else None, where, cut),)


def _strings(name: str, array: Any) -> list[list[str]]:
    """Rows of strings. Raises Fault for bytes that are no UTF-8."""
    try:
        return [[_decoded(item) for item in row] for row in array.tolist()]
    except UnicodeDecodeError as error:
        raise Fault(f"input {name} is not UTF-8 ({error}); encode the text as UTF-8") from error


def _decoded(item: Any) -> str:
    return item.decode("utf-8") if isinstance(item, bytes) else str(item)


def _parameters(form: TextForm, text: str) -> dict[str, Any]:
    """Values of PARAMETERS. Others are refused: a misspelt one would be answered as if it were not there.

    Triton's own parameters (sequence_id, priority, …) never get here.
    """
    found = json.loads(text) if text else {}
    unknown = sorted(found.keys() - set(PARAMETERS) - {"triton_enable_empty_final_response"})
    if unknown:
        raise Fault(f"unknown parameter {unknown[0]}; known: {', '.join(PARAMETERS)}")
    truncation = found.get("truncation", "error")
    if truncation not in CUTS:
        raise Fault(f"the parameter truncation is {truncation!r}; it is one of {', '.join(CUTS)}")
    dimensions = found.get("dimensions")
    if dimensions is not None:
        if isinstance(dimensions, bool) or not isinstance(dimensions, int):
            raise Fault(f"the parameter dimensions is {dimensions!r}; it is a whole number")
        check_dimensions(form, dimensions)
    return {"truncation": CUTS[truncation], "dimensions": dimensions}
