"""Labels of a data file as a model's class numbers, scores and sets of classes (tags: `qdq.tasks.schemes`)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qdq.errors import DataError
from qdq.text.data import Record
from qdq.text.layouts import as_list, whole

T = TypeVar("T")
_UNNAMED = re.compile(r"LABEL_(\d+)", re.IGNORECASE)
_BOOLEANS = {"false": 0, "true": 1}


@dataclass(frozen=True)
class Classes:
    """Classes of a model, asked by what files write for them; `names` is () where the model has none."""

    names: tuple[str, ...]
    count: int

    @property
    def unnamed(self) -> bool:
        """True when the names say no more than the number: none, LABEL_0, or 0."""
        return all(_number_of(name) == n for n, name in enumerate(self.names))

    def index(self, written: str, name: str | None = None, classes: Sequence[str] = ()) -> int | None:
        """The class that a file writes as `written`, None when the model has none such.

        In this order: the model's name of it (the file's own `name` of the number, or `written`), the same in other
        case, its number (also as 1.0 or LABEL_1), true and false of two. `classes` are the names of all the file's
        numbers: where none of them is the model's, their order is, as long as there are as many.
        """
        for label in (name, written):
            if label is not None and (place := self._named(label)) is not None:
                return place
        if classes and not self.unnamed and (len(classes) != self.count or any(map(self.knows, classes))):
            return None  # other classes, or some of the same and this one is not: its number is not this model's
        for label in (name, written):
            if label is not None and label in classes:
                return place if (place := list(classes).index(label)) < self.count else None
        number = _number_of(written)
        if number is not None:
            return number if number < self.count else None
        return _BOOLEANS.get(written.lower()) if self.count == 2 else None

    def knows(self, name: str) -> bool:
        """True when a class of the model has this name."""
        return self._named(name) is not None

    def _named(self, label: str) -> int | None:
        if label in self.names:
            return self.names.index(label)
        same = [n for n, name in enumerate(self.names) if name.strip().lower() == label.lower()]
        return same[0] if len(same) == 1 else None

    def __str__(self) -> str:
        if not self.names:
            return f"0 to {self.count - 1}"
        few = ", ".join(self.names[:30])
        return few if len(self.names) <= 30 else f"{few}, … ({len(self.names)} in all)"


def _number_of(label: str) -> int | None:
    unnamed = _UNNAMED.fullmatch(label)
    return int(unnamed[1]) if unnamed else whole(label)


def class_indices(
    records: Sequence[Record], names: Sequence[str], classes: int, required: bool
) -> tuple[list[int] | None, str]:
    """Class index of every record, or None and the reason there is no metric.

    A label is whatever `Classes.index` understands. Raises DataError when `required` and a label is missing or unknown.
    """
    known = Classes(tuple(names), classes)

    def index(record: Record) -> int | None:
        if record.label is None:
            return _only(record, known)
        return known.index(record.label, record.label_name, record.classes)

    indices = ((record, index(record)) for record in records)
    hint = f"{_from_one(records, classes)}{_way_out(known)}"
    return _complete(indices, "unknown to the model", f" (it knows {known}){hint}", required)


def _way_out(known: Classes) -> str:
    """The rest of a sentence on an unknown label, for a model that does not name its classes."""
    return ", which has no names for its classes: give them in order by --labels" if known.unnamed else ""


def _from_one(records: Sequence[Record], classes: int) -> str:
    """A hint where the labels are the numbers 1 to `classes`: those of the model begin at 0."""
    found = {None if record.label is None else whole(record.label) for record in records}
    one = found == {*range(1, classes + 1)}
    return f" (the file's labels are 1 to {classes}, and 0 is the first class)" if one else ""


def _only(record: Record, known: Classes) -> int | None:
    """The class of a list that holds a single one."""
    return known.index(record.labels[0], None, record.classes) if record.labels and len(record.labels) == 1 else None


def _complete(
    values: Iterable[tuple[Record, T | None]], wrong: str, known: str, required: bool
) -> tuple[list[T] | None, str]:
    """The values without None; where there is a None, None and the reason: no label, or one that is `wrong`."""
    found: list[T] = []
    for number, (record, value) in enumerate(values, start=1):
        if value is None:
            reason = f"evaluation text {number} {_fault(record, wrong)}{known}"
            if required:
                raise DataError(f"{reason}; name another --label-column, or leave it out")
            return None, reason
        found.append(value)
    return found, ""


def _fault(record: Record, wrong: str) -> str:
    if record.labels is not None:
        return (
            f"has a list of {len(record.labels)} labels, and the model gives one class per text (a model of several "
            'says so in config.json: "problem_type": "multi_label_classification")'
        )
    if record.label == "-1":
        return f"has label '-1', {wrong} (data sets of the hub give it to rows without one, as in their test splits)"
    return f"has label '{record.label}', {wrong}" if record.label else "has no label"


def numbers(records: Sequence[Record], required: bool, outputs: int = 1) -> tuple[NDArray[np.float64] | None, str]:
    """Scores [records, outputs], or None and why. Raises DataError when `required` and one is no finite number."""
    wrong = "which is no number" if outputs == 1 else f"which are not the {outputs} numbers the model returns"
    found, reason = _complete(((record, _scores(record, outputs)) for record in records), wrong, "", required)
    return (None if found is None else np.array(found, dtype=np.float64).reshape(-1, outputs)), reason


def _scores(record: Record, outputs: int) -> list[float] | None:
    """The numbers of a record; true and false count as 1 and 0."""
    written = record.labels if record.labels is not None else (record.label,) if record.label is not None else ()
    try:
        values = [float(_BOOLEANS.get(part.lower(), part)) for part in written]
    except ValueError:
        return None
    return values if len(values) == outputs and all(map(math.isfinite, values)) else None


def label_sets(
    records: Sequence[Record], names: Sequence[str], classes: int, required: bool
) -> tuple[NDArray[np.bool_] | None, str]:
    """Classes of every record, [records, classes], or None and the reason there is no metric.

    Read from one 0/1 column per class, a list of names or numbers, a list of one 0 or 1 per class, or a list written
    as text (``[1, 3]``, ``toxic|insult``, ``2,27``). Raises DataError when `required` and the data hold none of these.
    """
    known = Classes(tuple(names), classes)
    found, reason = _from_columns(records, known)
    if found is None and not reason:
        found, reason = _from_lists(records, known)
    if found is None and required:
        raise DataError(
            f"{reason}; a multi-label model needs a list of classes for each text, or a 0/1 column for each class "
            "(--label-column A,B,C names them)"
        )
    return found, reason


def class_columns(record: Record, known: Classes) -> list[str | None]:
    """The 0/1 column of every class, None for a class without one; empty where no class has one."""
    lower = {name.strip().lower(): name for name in record.flags}
    columns = [lower.get(name.strip().lower()) for name in known.names]
    if known.unnamed and record.label is None and record.labels is None and len(record.flags) == known.count:
        columns = list(record.flags)  # as the user listed them, or all that there are
    return columns if any(columns) else []


def _from_columns(records: Sequence[Record], known: Classes) -> tuple[NDArray[np.bool_] | None, str]:
    """Sets from 0/1 columns; None and no reason where there are none of the model's classes."""
    columns = class_columns(records[0], known)
    if not columns:
        return None, ""
    if None in columns:
        missing = known.names[columns.index(None)]
        return None, f"there is no 0/1 column for the class '{missing}' beside those of other classes"
    rows = []
    for number, record in enumerate(records, start=1):
        if absent := [column for column in columns if column not in record.flags]:
            return None, f"evaluation text {number} has neither 0 nor 1 in its column '{absent[0]}'"
        rows.append([record.flags[str(column)] for column in columns])
    return np.array(rows, dtype=bool), ""


def _from_lists(records: Sequence[Record], known: Classes) -> tuple[NDArray[np.bool_] | None, str]:
    lists = [_parts(record, known) for record in records]
    multi_hot = all(
        parts is not None and len(parts) == known.count and all(whole(part) in (0, 1) for part in parts)
        for parts in lists
    )
    found = np.zeros((len(records), known.count), dtype=bool)
    for row, (record, parts) in enumerate(zip(records, lists, strict=True)):
        if parts is None:
            return None, f"evaluation text {row + 1} has no list of labels"
        if multi_hot:
            found[row] = [whole(part) == 1 for part in parts]
            continue
        for part in parts:
            place = known.index(part, None, record.classes)
            if place is None:
                return None, f"evaluation text {row + 1} has label '{part}', unknown to the model (it knows {known})"
            found[row, place] = True
    return found, ""


def _parts(record: Record, known: Classes) -> list[str] | None:
    """Classes of a record as written; an empty cell is a text without any."""
    if record.labels is not None:
        return list(record.labels)
    if record.label is None:
        return None
    text = record.label
    if (items := as_list(text)) is not None:
        return [str(item) for item in items]
    if not text or known.index(text, record.label_name, record.classes) is not None:
        return [text] if text else []
    for separators in (r"[|;,]", r"[|;,\s]"):
        parts = [part.strip() for part in re.split(separators, text) if part.strip()]
        if all(known.index(part, None, record.classes) is not None for part in parts):
            return parts
    return [text]


def by_number(records: Sequence[Record], names: Sequence[str]) -> str:
    """A note where the file names its classes otherwise than the model, so that their order was taken; else ""."""
    theirs = next((record.classes for record in records if record.classes), ())
    known = Classes(tuple(names), len(names))
    if not theirs or known.unnamed or any(map(known.knows, theirs)):
        return ""
    return (
        f"classes are taken by their numbers: the file calls them {', '.join(theirs[:4])}, the model {known}; "
        "--labels names them"
    )
