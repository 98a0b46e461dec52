"""Which texts calibrate, which evaluate, and what their labels mean to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdq.artifacts import sha256_file, sha256_tree
from qdq.data import Record, TextSource, bundled, read_records
from qdq.errors import DataError
from qdq.options import CompileOptions

PAIR_TASKS = ("question-answering", "next-sentence-prediction", "multiple-choice")


@dataclass(frozen=True)
class Texts:
    """Records with the sentence that says where they come from."""

    records: tuple[Record, ...]
    source: str


def calibration_texts(options: CompileOptions, task: str) -> Texts:
    """The first `samples` texts of the calibration source, or of the bundled English text."""
    if options.calibration is None:
        records = _bundled(task, heldout=False)[: options.samples]
        return Texts(tuple(records), f"bundled English text, {len(records)} texts")
    records, columns = read_records(_source(options, options.calibration), options.samples)
    return Texts(tuple(records), f"{options.calibration} ({_columns(columns)}), {len(records)} texts")


def evaluation_texts(options: CompileOptions, task: str) -> Texts:
    """Texts that were not calibrated on.

    From `eval_data`; else what the calibration source has left; else, when that is nothing, bundled held-out text.
    Records that also were calibrated on are left out. Raises DataError when none remain.
    """
    used = {(record.text, record.pair) for record in calibration_texts(options, task).records}
    if options.eval_data is not None:
        records, columns = read_records(_source(options, options.eval_data), options.eval_samples)
        fresh = [record for record in records if (record.text, record.pair) not in used]
        if not fresh:
            raise DataError(f"{options.eval_data}: every text was calibrated on; give other text to --eval-data (EVAL=)")
        return Texts(tuple(fresh), f"{options.eval_data} ({_columns(columns)}), {len(fresh)} texts")
    if options.calibration is not None:
        wanted = options.samples + options.eval_samples
        records, columns = read_records(_source(options, options.calibration), wanted)
        fresh = [record for record in records[options.samples :] if (record.text, record.pair) not in used]
        if fresh:
            first = options.samples + 1
            return Texts(tuple(fresh), f"{options.calibration} from row {first} on, {len(fresh)} texts")
    records = [record for record in _bundled(task, heldout=True) if (record.text, record.pair) not in used]
    return Texts(tuple(records[: options.eval_samples]), f"bundled held-out English text, {len(records)} texts")


def label_indices(
    records: Sequence[Record], names: Sequence[str], classes: int, required: bool
) -> tuple[list[int] | None, str]:
    """Class index of every record, or None and why there is no metric.

    A label is a class name of the checkpoint or its number. Raises DataError when `required` (the user named the
    column) and a label is missing or unknown.
    """
    indices: list[int] = []
    for number, record in enumerate(records, start=1):
        index = _label_index(record.label, names, classes)
        if index is None:
            what = "has no label" if record.label is None else f"has label '{record.label}', which the model does not know"
            reason = f"text {number} {what} (classes: {', '.join(names) or classes})"
            if required:
                raise DataError(f"{reason}; name another --label-column, or leave it out")
            return None, reason
        indices.append(index)
    return indices, ""


def _label_index(label: str | None, names: Sequence[str], classes: int) -> int | None:
    if label is None:
        return None
    if label in names:
        return names.index(label)
    return int(label) if label.isdecimal() and int(label) < classes else None


def source_fingerprint(options: CompileOptions, path: str | None) -> dict[str, Any]:
    """What decides the records read from `path`, for the manifest."""
    columns = {"text": list(options.text_columns), "label": options.label_column}
    if path is None:
        return {"bundled": sha256_tree(Path(bundled().path).parent)}
    place = Path(path).expanduser()
    if place.is_file():
        return {**columns, "sha256": sha256_file(place)}
    return {**columns, "sha256": sha256_tree(place)} if place.is_dir() else {**columns, "source": path}


def _bundled(task: str, heldout: bool) -> list[Record]:
    pairs = read_records(bundled(pairs=True, heldout=heldout))[0]
    if task in PAIR_TASKS:
        return pairs
    texts = read_records(bundled(heldout=heldout))[0]
    # A classifier may have been trained on single texts or on pairs; nothing in a checkpoint says which, so both.
    return pairs + texts if task == "text-classification" else texts


def _source(options: CompileOptions, path: str) -> TextSource:
    return TextSource(path, options.text_columns, options.label_column)


def _columns(columns: Any) -> str:
    return " + ".join(name for name in (columns.text, columns.pair) if name)
