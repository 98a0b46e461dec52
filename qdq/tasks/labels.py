"""Labels of a data file as a model's class numbers, scores and tags."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from qdq.errors import DataError
from qdq.text.data import Record

T = TypeVar("T")
NO_CONSENSUS = "-"  # the gold label of cmnli, ocnli, mnli and snli rows their annotators disagreed on
_UNNAMED = re.compile(r"LABEL_\d+")
# Codes a CLUE file writes instead of class numbers, in the order of its label list. They count where the model's own
# classes are unnamed; a model that names its classes is asked by name.
_CODES = (
    tuple(map(str, (100, 101, 102, 103, 104, 106, 107, 108, 109, 110, 112, 113, 114, 115, 116))),  # tnews
    ("true", "false"),  # cluewsc2020
)


def class_indices(
    records: Sequence[Record], names: Sequence[str], classes: int, required: bool
) -> tuple[list[int] | None, str]:
    """Class index of every record, or None and the reason there is no metric.

    A label is a class name of the checkpoint (as written, or CLUE's label_desc beside it), its number, or a CLUE code.
    Raises DataError when `required` and a label is missing or unknown.
    """
    codes = _codes(records, names, classes)
    known = f" (it knows {', '.join(names) if names else f'0 to {classes - 1}'})"
    indices = ((record, _class_index(record, names, classes, codes)) for record in records)
    return _complete(indices, "unknown to the model", known, required)


def _complete(
    values: Iterable[tuple[Record, T | None]], wrong: str, known: str, required: bool
) -> tuple[list[T] | None, str]:
    """The values without None; where there is a None, None and the reason: no label, or one that is `wrong`."""
    found: list[T] = []
    for number, (record, value) in enumerate(values, start=1):
        if value is None:
            what = "has no label" if record.label is None else f"has label '{record.label}', {wrong}"
            reason = f"evaluation text {number} {what}{known}"
            if required:
                raise DataError(f"{reason}; name another --label-column, or leave it out")
            return None, reason
        found.append(value)
    return found, ""


def _codes(records: Sequence[Record], names: Sequence[str], classes: int) -> Sequence[str]:
    if any(not _UNNAMED.fullmatch(name) for name in names):
        return ()
    found = {record.label for record in records}
    return next((codes for codes in _CODES if len(codes) == classes and found <= set(codes)), ())


def _class_index(record: Record, names: Sequence[str], classes: int, codes: Sequence[str]) -> int | None:
    if record.label is None:
        return None
    for known in (names, codes):
        for label in (record.label, record.label_name):
            if label in known:
                return list(known).index(str(label))
    return int(record.label) if record.label.isdecimal() and int(record.label) < classes else None


def numbers(records: Sequence[Record], required: bool) -> tuple[list[float] | None, str]:
    """The score of every record, or None and why. Raises DataError when `required` and one is no finite number."""
    return _complete(((record, _number(record)) for record in records), "which is no number", "", required)


def _number(record: Record) -> float | None:
    try:
        value = float(record.label or math.nan)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def check_tags(records: Sequence[Record], names: Sequence[str], required: bool) -> str:
    """Return the reason a model with the classes `names` cannot be scored on the tags of `records`; "" when it can.

    Raises DataError when `required` and a tag is missing or unknown to the model.
    """
    known = set(names)
    for number, record in enumerate(records, start=1):
        reason = ""
        if len(record.tags) != len(record.words):
            reason = f"evaluation text {number} has no tags"
        elif "" in record.tags:
            word = record.words[record.tags.index("")]
            reason = f"evaluation text {number} has no tag for its word '{word}'"
        elif unknown := [tag for tag in record.tags if tag not in known]:
            reason = (
                f"evaluation text {number} has tag '{unknown[0]}', unknown to the model (it knows {', '.join(names)})"
            )
        if reason:
            if required:
                raise DataError(f"{reason}; give a file tagged for this model")
            return reason
    return ""
