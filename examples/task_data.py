"""Data of the three compression scripts: a split of a local folder or a hub data set, as records and class numbers.

A local folder holds ``train`` and ``dev`` (or valid, validation, test) files in any form that `qdq` reads: JSON, TSV,
CSV, Parquet, ``token TAG`` lines, SQuAD JSON. A hub data set is named as `datasets.load_dataset` takes it: "clue
tnews", "conll2003", "squad".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qdq.errors import ConfigError, DataError
from qdq.load.model import LoadedModel
from qdq.tasks.heads import head_of_model
from qdq.tasks.labels import Classes, class_indices, label_sets, numbers
from qdq.tasks.schemes import gold_tags
from qdq.text.columnar import class_names
from qdq.text.data import Record, TextSource, read_records, records_from_rows
from qdq.text.files import SUFFIXES
from qdq.text.lines import Row

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "dev": ("dev", "valid", "validation", "test"),  # the first of them that is there
}


def read(dataset: str, split: str, options: Any) -> list[Record]:
    """Records of one split; `options` are the script's DataArguments.

    Raises DataError for a file that is missing or malformed, ConfigError for a data set that cannot be loaded.
    """
    limit = (options.max_train_samples if split == "train" else options.max_eval_samples) or None
    named = (tuple(options.text_columns), options.label_column, tuple(options.header), tuple(options.labels))
    place = Path(dataset).expanduser()
    if not place.exists():
        return records_from_rows(_hub(dataset, split), TextSource(dataset, *named), limit)[0]
    file = place if place.is_file() else _file_of(place, split)
    return read_records(TextSource(str(file), *named), limit)[0]


def _file_of(folder: Path, split: str) -> Path:
    """The split's file: its name holds the split's word, its suffix is known."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (*SUFFIXES, ".annotated"))
    for word in SPLITS[split]:
        for path in files:
            if word in path.stem.lower():
                return path
    found = ", ".join(path.name for path in files) or "none"
    raise DataError(f"{folder}: no file for '{split}' (one of {', '.join(SPLITS[split])}.*; there are: {found})")


def _hub(dataset: str, split: str) -> list[Row]:
    import datasets

    try:
        loaded = datasets.load_dataset(*dataset.split())
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--dataset '{dataset}': is no folder here and cannot be loaded from the hub ({reason})"
        ) from error
    name = next((word for word in SPLITS[split] if word in loaded), None)
    if name is None:
        raise ConfigError(f"--dataset '{dataset}': has no split for {split}, only {', '.join(loaded)}")
    names = class_names(loaded[name].features)
    return [Row(f"{dataset}, row {number}", row, names) for number, row in enumerate(loaded[name], start=1)]


def class_labels(loaded: LoadedModel, records: Sequence[Record], where: str) -> list[Any]:
    """The `labels` entry of every record for a text classifier: a class, one float per class, or a float.

    Raises DataError naming the first record whose label the model's head cannot take.
    """
    count = len(loaded.labels)
    head = head_of_model(loaded.model)
    if head.kind == "multi-label":
        sets, reason = label_sets(records, loaded.labels, count, required=False)
        found: Any = None if sets is None else sets.astype(float).tolist()
    elif head.kind == "scores":
        scores, reason = numbers(records, required=False, outputs=count)
        found = None if scores is None else scores[:, 0].tolist() if count == 1 else scores.tolist()
    else:
        found, reason = class_indices(records, loaded.labels, count, required=False)
        if found is None and (order := _order(loaded, {record.label for record in records})):
            return [order[str(record.label)] for record in records]
    if found is None:
        raise DataError(f"{where}: {reason.removeprefix('evaluation ')}; name another --label_column, or correct it")
    return list(found)


def tag_numbers(loaded: LoadedModel, records: Sequence[Record], where: str) -> list[list[int]]:
    """Class of every word of every record. Raises DataError naming the first tag the model does not know."""
    tags, reason = gold_tags(records, loaded.labels, required=False)
    places = {name: number for number, name in enumerate(loaded.labels)}
    if tags is None and (order := _order(loaded, {tag for record in records for tag in record.tags})):
        tags, places = [list(record.tags) for record in records], order
    if tags is None:
        raise DataError(f"{where}: {reason.removeprefix('evaluation ')}; give a file tagged for this model")
    return [[places[tag] for tag in sentence] for sentence in tags]


def _order(loaded: LoadedModel, labels: set[str | None]) -> dict[str, int]:
    """Labels of the data in their order, for a model that has as many classes and does not name them; else {}."""
    found = sorted(str(label) for label in labels if label)
    fits = (
        Classes(loaded.labels, len(loaded.labels)).unnamed and len(found) == len(loaded.labels) and None not in labels
    )
    return {label: number for number, label in enumerate(found)} if fits else {}
