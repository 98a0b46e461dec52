"""Data of the three compression scripts: a local folder or a hub dataset, as rows with labels.

A local folder holds ``train`` and ``dev`` (or valid, validation, test) files: JSON lines, TSV or CSV for
classification, ``token TAG`` lines for token classification, SQuAD JSON for question answering. A hub dataset is named
as `datasets.load_dataset` takes it: "clue tnews", "conll2003", "squad".
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qdq.errors import ConfigError, DataError
from qdq.text.files import SUFFIXES, read_rows

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "dev": ("dev", "valid", "validation", "test"),  # the first of them that is there
}
Row = dict[str, Any]


def read(dataset: str, split: str, kind: str) -> list[Row]:
    """Rows of one split. `kind`: classes, tokens ("tokens", "tags") or answers ("question", "context", "answers").

    Raises DataError for a file that is missing or malformed, ConfigError for a dataset that cannot be loaded.
    """
    place = Path(dataset).expanduser()
    if not place.exists():
        return _hub(dataset, split)
    file = place if place.is_file() else _file_of(place, split)
    rows = list({"classes": _classes, "tokens": _tokens, "answers": _answers}[kind](file))
    if not rows:
        raise DataError(f"{file}: has no rows; give labelled data")
    return rows


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
    data = loaded[name]
    features = data.features
    rows: list[Row] = []
    for row in data:
        row = dict(row)
        for key, feature in features.items():  # class indices back to the names a label file would hold
            inner = getattr(feature, "feature", feature)
            if hasattr(inner, "int2str") and key in row and row[key] not in (None, -1):
                row[key] = inner.int2str(row[key])
        if "ner_tags" in row:
            row["tags"] = row.pop("ner_tags")
        rows.append(row)
    return rows


def _classes(path: Path) -> Iterator[Row]:
    for row in read_rows(path):
        yield dict(row.values)


def _tokens(path: Path) -> Iterator[Row]:
    """Sentences of ``token … TAG`` lines."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    numbered = ((number, line.split()) for number, line in enumerate(lines, start=1))
    for blank, block in itertools.groupby(numbered, key=lambda line: not line[1]):
        if blank:
            continue
        sentence = [(number, cells) for number, cells in block if cells[0] != "-DOCSTART-"]
        for number, cells in sentence:
            if len(cells) < 2:
                raise DataError(f"{path}, line {number}: has no tag behind '{cells[0]}'; write TOKEN TAG")
        if sentence:
            yield {"tokens": [cells[0] for _, cells in sentence], "tags": [cells[-1] for _, cells in sentence]}


def _answers(path: Path) -> Iterator[Row]:
    """Questions of a SQuAD file (v1 or v2), their context, and all their answers."""
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = question.get("answers", [])
                    yield {
                        "id": str(question.get("id", "")),
                        "question": question["question"],
                        "context": paragraph["context"],
                        "answers": {
                            "text": [answer["text"] for answer in answers],
                            "answer_start": [answer["answer_start"] for answer in answers],
                        },
                    }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: is not SQuAD JSON ({error!r}); give data/paragraphs/qas") from error


def labels_of(rows: Sequence[Row], column: str) -> list[str]:
    """Every label, sorted (numbers as numbers). Raises DataError when a row has none."""
    values = {str(value) for row in rows for value in (row[column] if isinstance(row[column], list) else [row[column]])}
    return sorted(values, key=lambda value: (len(value), value) if value.isdigit() else (0, value))


def label_map(model: Any, rows: Sequence[Row], column: str) -> dict[str, int]:
    """Label as written in the data to class index of the model's head.

    By name when the model knows the names, else by order when the counts agree. Raises DataError otherwise.
    """
    found = labels_of(rows, column)
    names = {str(name): int(index) for name, index in (model.config.label2id or {}).items()}
    if set(found) <= set(names):
        return {label: names[label] for label in found}
    count = int(model.config.num_labels)
    if all(label.isdigit() and int(label) < count for label in found):
        return {label: int(label) for label in found}
    if len(found) == count:
        return {label: index for index, label in enumerate(found)}
    raise DataError(
        f"the data has the labels {', '.join(found[:6])}{', …' if len(found) > 6 else ''} ({len(found)}) and the "
        f"model's head {count} classes ({', '.join(list(names)[:6])}); fine-tune the model on these labels first"
    )
