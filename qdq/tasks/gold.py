"""Gold labels of a classifier's records: one reading for evaluation, calibration, compiling and training.

Classes are asked by name in this order: the model's `id2label`, the names that the file or --labels gives its numbers,
the order in which CLUE or GLUE list the classes of a data set. Where none of them says which class a name is, there is
no gold; the order of the alphabet or of first appearance never counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qdq.errors import DataError
from qdq.loading.kinds import CHOICES
from qdq.tasks.heads import head_of_model
from qdq.tasks.labels import Classes, by_number, class_columns, class_indices, label_sets, numbers
from qdq.tasks.schemes import gold_tags
from qdq.text.data import Record

if TYPE_CHECKING:
    from qdq.loading.model import LoadedModel

NO_CONSENSUS = "-"  # the gold label of cmnli, ocnli, mnli and snli rows their annotators disagreed on
NO_CLASS = "-1"  # the same, and rows of a test split, where a file numbers named classes as the `datasets` package does
_ENTAILMENT = ("entailment", "not_entailment")
# Classes in their order by data set, where files write names or codes instead of numbers. Sources: CLUE's lists as
# PaddleNLP has them, and GLUE's processors in transformers 2. What iflytek writes are the numbers themselves.
ORDERS: Mapping[str, tuple[str, ...]] = {
    "tnews": tuple(map(str, (100, 101, 102, 103, 104, 106, 107, 108, 109, 110, 112, 113, 114, 115, 116))),
    "ocnli": ("entailment", "contradiction", "neutral"),
    "cmnli": ("contradiction", "entailment", "neutral"),
    "cluewsc2020": ("true", "false"),
    "mnli": ("contradiction", "entailment", "neutral"),
    "qnli": _ENTAILMENT,
    "rte": _ENTAILMENT,
}
_BY_CONTENT = "tnews"  # its codes are beyond the numbers of its classes, so they are known wherever the file lies


@dataclass(frozen=True)
class Gold:
    """Records that count, with their gold labels.

    Attributes:
        records: the given ones without those that their annotators did not agree on.
        names: of the classes; the model's own, or those that the data name for a model without.
        values: class numbers [N], truths [N, classes] or scores [N, logits], by the model's head; None without gold.
        reason: of there being none, else "".
        notes: sentences a user should read: rows left out, an order of classes that is not the model's.
    """

    records: list[Record]
    names: tuple[str, ...]
    values: Any
    reason: str
    notes: tuple[str, ...] = ()

    @property
    def trained(self) -> list[Any]:
        """The `labels` entry of every record's training row: a class, one float per class, or a score."""
        if isinstance(self.values, list):
            return self.values
        values = self.values.astype(float)
        single = values.shape[1] == 1 and self.values.dtype != bool  # a score without its row
        return list((values[:, 0] if single else values).tolist())


def gold_of(records: Sequence[Record], loaded: LoadedModel, required: bool = False) -> Gold:
    """Gold labels for a model that gives each text (pair) classes or scores.

    Raises DataError when `required`, there are labels, and one is missing or not the model's.
    """
    # Rows that count
    kept, notes = with_consensus(records, loaded.labels)
    count, head = len(loaded.labels) or CHOICES, head_of_model(loaded.model)
    if head.kind == "scores":
        scores, reason = numbers(kept, required, count) if any_label(kept) else (None, _no_label(kept))
        return Gold(kept, loaded.labels, scores, reason, (*notes, *head.notes))
    # The names of the classes, and every label as one of them or as a set
    names, reason = names_of_classes(kept, loaded.labels)
    values: Any = None
    sets = head.kind == "multi-label" and bool(loaded.labels)
    if not any_label(kept) and not (sets and class_columns(kept[0], Classes(names, count))):
        return Gold(kept, names, None, _no_label(kept), notes)
    if reason and required:
        raise DataError(reason)
    if not reason:
        read = label_sets if sets else class_indices
        values, reason = read(kept, names, count, required)
    said = (by_number(kept, loaded.labels), "" if names == loaded.labels else _order_note(kept, names))
    return Gold(kept, names, values, reason, (*notes, *filter(None, said)))


def tags_of(records: Sequence[Record], loaded: LoadedModel, required: bool = False) -> Gold:
    """Gold tags of every word [N][words], as the model writes them: elements of `names`. Raises DataError."""
    names, reason = names_of_classes(records, loaded.labels)
    if not any(record.tags for record in records):
        return Gold(list(records), names, None, f"none of the {len(records)} texts has tags")
    if reason and required:
        raise DataError(reason)
    tags, reason = (None, reason) if reason else gold_tags(records, names, required)
    return Gold(list(records), names, tags, reason)


def with_consensus(records: Sequence[Record], names: Sequence[str]) -> tuple[list[Record], tuple[str, ...]]:
    """The records whose label counts, and a note on the others; a class may be called - or -1.

    Where no label counts, the file is one without labels, such as a test split, and its texts stay without them.
    """

    def open_ended(record: Record) -> bool:
        marks = (NO_CONSENSUS, NO_CLASS) if record.classes else (NO_CONSENSUS,)
        return record.label in marks and record.label not in (*names, *record.classes)

    left_out = [record for record in records if open_ended(record)]
    if not left_out:
        return list(records), ()
    marks = " or ".join(f"'{mark}'" for mark in sorted({str(record.label) for record in left_out}))
    if len(left_out) == len(records):
        return [replace(record, label=None) for record in records], (f"all labels are {marks}, which is none",)
    kept = [record for record in records if not open_ended(record)]
    return kept, (f"{len(left_out)} rows without consensus ({marks}) left out",)


def names_of_classes(records: Sequence[Record], labels: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The model's names of its classes, `labels`; where they say nothing, those the data have for as many classes.

    The second value is the reason that the data's classes cannot be the model's, "" when they can.
    """
    if not Classes(tuple(labels), len(labels)).unnamed or not labels:
        return tuple(labels), ""
    theirs = next((record.classes for record in records if record.classes), ())
    if not theirs or Classes(theirs, len(theirs)).unnamed:
        return _order_of(records, len(labels)) or tuple(labels), ""
    if len(theirs) == len(labels):
        return theirs, ""
    few = ", ".join(theirs[:4]) + (", …" if len(theirs) > 4 else "")
    return tuple(labels), (
        f"the data have {len(theirs)} classes ({few}) and the model {len(labels)} without names; give data of its own "
        "classes, or their names in order by --labels"
    )


def _order_of(records: Sequence[Record], count: int) -> tuple[str, ...]:
    """The order of the data set's classes, where there are `count` and every label is one of them; else ()."""
    found = {record.label for record in records if record.label is not None}
    dataset = next((record.dataset for record in records if record.dataset in ORDERS), "")
    for name in (dataset, _BY_CONTENT if found else ""):
        order = ORDERS.get(name, ())
        if len(order) == count and found <= set(order):
            return order
    return ()


def _order_note(records: Sequence[Record], names: Sequence[str]) -> str:
    """A sentence on an order of names that is not the model's."""
    if any(record.classes for record in records):
        whose = "as the data or --labels number them"
    else:
        dataset = next((record.dataset for record in records if record.dataset in ORDERS), _BY_CONTENT)
        whose = f"as {dataset} lists them (--labels: another order)"
    few = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    return f"the model does not name its classes; they are {few}, {whose}"


def _no_label(records: Sequence[Record]) -> str:
    return f"none of the {len(records)} texts has a label"


def any_label(records: Sequence[Record]) -> bool:
    """True when a record has a label, or a list of them."""
    return any(record.label is not None or record.labels is not None for record in records)
