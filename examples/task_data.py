"""Data of the three compression scripts: a split of a local folder or a hub data set, as records and class numbers.

A local folder holds ``train`` and ``dev`` (or valid, validation, test) files in any form that `qdq` reads: JSON, TSV,
CSV, Parquet, ``token TAG`` lines, SQuAD JSON. A hub data set is named as `datasets.load_dataset` takes it: "clue
tnews", "conll2003", "squad".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdq.base.screen import Screen
from qdq.errors import DataError
from qdq.load.model import LoadedModel
from qdq.tasks.gold import Gold, gold_of, tags_of
from qdq.text.columnar import SPLITS, is_saved_dataset
from qdq.text.data import Record, TextSource, read_records
from qdq.text.files import SUFFIXES


def read(dataset: str, split: str, options: Any) -> list[Record]:
    """Records of one split; `options` are the script's DataArguments.

    Raises DataError for a file that is missing or malformed, and for a data set that cannot be loaded.
    """
    limit = (options.max_train_samples if split == "train" else options.max_eval_samples) or None
    place = Path(dataset).expanduser()
    if place.is_file():
        path = str(place)
    elif place.is_dir() and not is_saved_dataset(place):
        path = str(_file_of(place, split))
    else:
        path = f"datasets:{dataset}:{split}"
    named = (tuple(options.text_columns), options.label_column, tuple(options.header), tuple(options.labels))
    return read_records(TextSource(path, *named), limit)[0]


def _file_of(folder: Path, split: str) -> Path:
    """The split's file: its name holds the split's word, its suffix is known."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (*SUFFIXES, ".annotated"))
    for word in SPLITS[split]:
        for path in files:
            if word in path.stem.lower():
                return path
    found = ", ".join(path.name for path in files) or "none"
    raise DataError(f"{folder}: no file for '{split}' (one of {', '.join(SPLITS[split])}.*; there are: {found})")


def with_classes(loaded: LoadedModel, records: Sequence[Record], where: str) -> list[tuple[Record, Any]]:
    """Records with the `labels` entry of a text classifier: a class, one float per class, or a float.

    They are read as `qdq evaluate` reads them; what is left out is said on the screen. Raises DataError naming the
    first record whose label the model's head cannot take.
    """
    gold = _said(gold_of(records, loaded), where, "name another --label_column, or correct it")
    values: Any = gold.values
    if not isinstance(values, list):  # sets of classes as floats; a single score without its row
        values = values.astype(float)
        values = (values[:, 0] if values.shape[1] == 1 and values.dtype != bool else values).tolist()
    return list(zip(gold.records, values, strict=True))


def with_tags(loaded: LoadedModel, records: Sequence[Record], where: str) -> list[tuple[Record, list[int]]]:
    """Records with the class of every word. Raises DataError naming the first tag the model does not know."""
    gold = _said(tags_of(records, loaded), where, "give a file tagged for this model")
    places = {name: number for number, name in enumerate(gold.names)}
    numbers = [[places[tag] for tag in sentence] for sentence in gold.values]
    return list(zip(gold.records, numbers, strict=True))


def _said(gold: Gold, where: str, way_out: str) -> Gold:
    """`gold` with its notes on the screen. Raises DataError where there is none."""
    if gold.values is None:
        raise DataError(f"{where}: {gold.reason.removeprefix('evaluation ')}; {way_out}")
    screen = Screen()
    for note in gold.notes:
        screen.row("data", f"{where}: {note}")
    return gold
