"""The texts of a run: those it calibrates on, those it evaluates on, those a search judges placements on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdq.base.artifacts import sha256_file, sha256_tree
from qdq.base.choices import INFORMATION_EXTRACTION
from qdq.errors import DataError
from qdq.pipeline.options import CompileOptions
from qdq.text.data import Columns, Record, TextSource, bundled, read_records

SEARCH_SAMPLES = 256  # rows that `--search` judges placements on
PAIR_TASKS = ("question-answering", "next-sentence-prediction", "multiple-choice", INFORMATION_EXTRACTION)


@dataclass(frozen=True)
class Texts:
    """Records with the sentence that says where they come from; `bundled` text has no labels."""

    records: tuple[Record, ...]
    source: str
    bundled: bool = False


def calibration_texts(options: CompileOptions, task: str | None) -> Texts:
    """The first `samples` texts of the calibration source, or of the bundled English text."""
    if options.calibration is None:
        records = _bundled(task, heldout=False)[: options.samples]
        return Texts(tuple(records), f"bundled English text, {_count(records)}", bundled=True)
    records, columns = read_records(_source(options, options.calibration), options.samples)
    return Texts(tuple(records), f"{options.calibration} ({_columns(columns)}), {_count(records)}")


def evaluation_texts(options: CompileOptions, task: str | None, calibration: Texts) -> Texts:
    """Texts that were not calibrated on.

    From `eval_data`; else what the calibration source has left; else, when that is nothing, bundled held-out text.
    Records that also were calibrated on are left out. Raises DataError when none remain.
    """
    used = {(record.text, record.pair) for record in calibration.records}

    def unused(records: Sequence[Record]) -> tuple[Record, ...]:
        return tuple(record for record in records if (record.text, record.pair) not in used)

    # Text the user gave for it.
    if options.eval_data is not None:
        records, columns = read_records(_source(options, options.eval_data), options.eval_samples)
        if not (fresh := unused(records)):
            raise DataError(
                f"{options.eval_data}: every text was calibrated on; give other text to --eval-data (EVAL=)"
            )
        return Texts(fresh, f"{options.eval_data} ({_columns(columns)}), {_count(fresh)}")
    # The rows behind those that calibrated.
    if options.calibration is not None:
        wanted = options.samples + options.eval_samples
        records, _ = read_records(_source(options, options.calibration), wanted)
        if fresh := unused(records[options.samples :]):
            return Texts(fresh, f"{options.calibration} from row {options.samples + 1} on, {_count(fresh)}")
    # Bundled text.
    fresh = unused(_bundled(task, heldout=True))[: options.eval_samples]
    if not fresh:
        raise DataError("every bundled text was calibrated on; give other text to --eval-data (EVAL=)")
    return Texts(fresh, f"bundled held-out English text, {_count(fresh)}", bundled=True)


def search_records(options: CompileOptions, calibration: Texts) -> tuple[Record, ...]:
    """Training rows for `--search`: those behind the calibration rows, else the calibration texts themselves."""
    if options.calibration is None:
        return calibration.records
    records, _ = read_records(_source(options, options.calibration), options.samples + SEARCH_SAMPLES)
    return tuple(records[options.samples :]) or calibration.records


def source_fingerprint(options: CompileOptions, path: str | None) -> dict[str, Any]:
    """Everything the texts read from `path` depend on, for the manifest: content, not place."""
    if path is None:
        return {"bundled": sha256_tree(Path(bundled().path).parent)}
    from qdq.tasks.gold import ORDERS

    columns: dict[str, Any] = {"columns": list(options.text_columns), "header": list(options.header)}
    if (dataset := TextSource(path).dataset) in ORDERS:
        columns["classes"] = dataset  # the folder's name says their order
    name, _, split = path.removeprefix("datasets:").partition(":") if path.startswith("datasets:") else (path, "", "")
    place = Path(name).expanduser()
    if place.is_file():
        return {**columns, "split": split, "sha256": sha256_file(place)}
    if place.is_dir():
        return {**columns, "split": split, "sha256": sha256_tree(place)}
    return {**columns, "source": path}  # a dataset of the hub, or a mistake that reading it will report


def _bundled(task: str | None, heldout: bool) -> list[Record]:
    pairs = read_records(bundled(pairs=True, heldout=heldout))[0]
    if task in PAIR_TASKS:
        return pairs
    texts = read_records(bundled(heldout=heldout))[0]
    # A classifier may have been trained on single texts or on pairs; nothing in a checkpoint says which, so both.
    return pairs + texts if task == "text-classification" else texts


def _source(options: CompileOptions, path: str) -> TextSource:
    return TextSource(path, options.text_columns, options.label_column, options.header, options.labels)


def _columns(columns: Columns) -> str:
    return " + ".join(name for name in (columns.text, columns.pair) if name)


def _count(records: Sequence[Record]) -> str:
    return f"{len(records)} text{'' if len(records) == 1 else 's'}"
