"""Data of the three compression scripts: a split of a local folder or a hub data set, as records and class numbers.

A local folder holds ``train`` and ``dev`` (or valid, validation, test) files in any form that `qdq` reads: JSON, TSV,
CSV, Parquet, ``token TAG`` lines, SQuAD JSON. A hub data set is named as `datasets.load_dataset` takes it: "clue
tnews", "conll2003", "squad".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qdq.base.screen import Screen
from qdq.errors import DataError
from qdq.loading.model import LoadedModel
from qdq.tasks.gold import Gold, gold_of, tags_of
from qdq.text.data import Record, TextSource, read_records
from qdq.text.splits import split_path


def read(dataset: str, split: str, options: Any) -> list[Record]:
    """Records of one split; `options` are the script's DataArguments.

    Raises DataError for a file that is missing or malformed, and for a data set that cannot be loaded.
    """
    limit = (options.max_train_samples if split == "train" else options.max_eval_samples) or None
    named = (tuple(options.text_columns), options.label_column, tuple(options.header), tuple(options.labels))
    return read_records(TextSource(split_path(dataset, split), *named), limit)[0]


def with_classes(loaded: LoadedModel, records: Sequence[Record], where: str) -> list[tuple[Record, Any]]:
    """Records with the `labels` entry of a text classifier: a class, one float per class, or a float.

    They are read as `qdq evaluate` reads them; what is left out is said on the screen. Raises DataError naming the
    first record whose label the model's head cannot take.
    """
    gold = _said(gold_of(records, loaded), where, "name another --label_column, or correct it")
    return list(zip(gold.records, gold.trained, strict=True))


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
