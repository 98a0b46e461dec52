"""Text for calibration, evaluation and benchmarks: find the text columns of a file, folder or dataset, read records.

Reading streams and stops early; every fault is a DataError naming file, line and way out. No torch, no transformers.
"""

from __future__ import annotations

import difflib
import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qdq.errors import ConfigError, DataError
from qdq.text.columnar import dataset_rows, is_saved_dataset
from qdq.text.columns import DETECTION_RULES, SAMPLE_ROWS, Columns, detect_columns
from qdq.text.files import Row, files_below, read_rows
from qdq.text.layouts import as_list, class_name, details, known_layout, span_column, whole
from qdq.text.lines import Given

__all__ = ["DETECTION_RULES", "Columns", "Record", "TextSource", "bundled", "read_records", "records_from_rows"]

logger = logging.getLogger(__name__)

_BUNDLED = Path(__file__).resolve().parents[2] / "calib_data"


@dataclass(frozen=True)
class Record:
    """One text, or a text pair, with its label and other columns.

    Attributes:
        label: class or score as written; None when there is none.
        label_name: CLUE's readable name of the class (label_desc), where the file has one beside the label.
        words, tags: of a tagged sentence, one tag per word; "" is a tag that is missing.
        answers: (text, first character in `pair`) of a question, () when it has none; None without answers in the file.
        spans: (start, end, text) of the answers to a prompt (UIE) in `pair`, () when it has none; negative ones lie in
            the prompt, counted from one behind its end. None without answers in the file.
        id: the row's own id, for prediction files.
        labels: classes of a row that has a list of them, as written; () is a row without any.
        flags: 0/1 columns beside the text by name, which may be one per class.
        classes: names of the numbers in label, labels or tags, where the file or the user names them.
        dataset: name of the data set (`TextSource.dataset`).
    """

    text: str
    pair: str | None = None
    label: str | None = None
    label_name: str | None = None
    words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    answers: tuple[tuple[str, int], ...] | None = None
    spans: tuple[tuple[int, int, str], ...] | None = None
    id: str | None = None
    labels: tuple[str, ...] | None = None
    flags: Mapping[str, bool] = field(default_factory=dict, compare=False)
    classes: tuple[str, ...] = field(default=(), compare=False)
    dataset: str = field(default="", compare=False)


@dataclass(frozen=True)
class TextSource:
    """A source of text, as the user names it.

    `path` is a file, a folder, or ``datasets:NAME_OR_FOLDER[:split]``, where NAME may have a configuration behind a
    space (``clue ocnli``) and the split dev stands for validation, too; `text_columns` names one (text) or two
    (text, pair) columns, empty means detect; `label_column` None means detect, with commas one column per class.
    `header` names the columns of a table or tagged file that has no header line; `labels` names the numbers that the
    label or tag column holds, in their order.
    """

    path: str
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    header: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def given(self) -> Given:
        """Facts that reading the files needs."""
        named = () if self.label_column is None else (self.label_column,)
        return Given(self.header, (*self.text_columns, *named))

    @property
    def dataset(self) -> str:
        """Name of the data set as its place says it: ocnli of OCNLI/, ocnli_public/dev.json and datasets:clue ocnli."""
        name = self.path
        if name.startswith("datasets:"):
            name = name.removeprefix("datasets:").partition(":")[0]
        place = Path(name).expanduser().absolute()
        if place.is_file():
            name = place.parent.name
        elif place.exists():
            name = place.name
        return Path((name.split() or [""])[-1]).name.lower().removesuffix("_public")


def bundled(pairs: bool = False, heldout: bool = False) -> TextSource:
    """The English text that ships with the project: calibration text, or `heldout` text never calibrated on."""
    name = f"{'heldout' if heldout else 'texts'}.jsonl"
    if pairs:
        name = f"{'heldout_' if heldout else ''}pairs.jsonl"
    return TextSource(str(_BUNDLED / name))


def read_records(source: TextSource, limit: int | None = None) -> tuple[list[Record], Columns]:
    """Read the first `limit` usable rows of `source` (all when None), in file order, and say which columns were used.

    Deterministic: a folder is read by sorted relative name. Raises DataError for a missing, unreadable, empty or
    malformed source, ConfigError for a wrong option or a missing `datasets` package.
    """
    return records_from_rows(_rows(source.path, source.given), source, limit)


def records_from_rows(
    rows: Iterable[Row | Mapping[str, Any]], source: TextSource, limit: int | None = None
) -> tuple[list[Record], Columns]:
    """As `read_records`, from rows at hand: any iterable of mappings, such as a `datasets.Dataset`."""
    if limit is not None and limit < 1:
        raise ConfigError(f"{source.path}: cannot read {limit} rows; ask for at least one")
    numbered = (row if isinstance(row, Row) else Row(f"{source.path}, row {n}", row) for n, row in enumerate(rows, 1))
    first = list(itertools.islice(numbered, SAMPLE_ROWS))
    spans = span_column(first, source.label_column)
    stream = (known_layout(row, source.label_column, spans) for row in itertools.chain(first, numbered))
    sample = list(itertools.islice(stream, SAMPLE_ROWS))
    if not sample:
        raise DataError(f"{source.path}: no rows (empty, only blank lines, or only a header); give a file with text")
    label_column = None if _holds_tags(sample, source) else source.label_column
    columns = detect_columns([row.values for row in sample], source.path, source.text_columns, label_column)
    records: list[Record] = []
    read, dataset = 0, source.dataset
    for row in itertools.chain(sample, stream):
        read += 1
        if (record := _record(row, columns, source.labels)) is not None:
            records.append(replace(record, dataset=dataset))
        if len(records) == limit:
            break
    return records, _counted(source, columns, read, len(records))


def _counted(source: TextSource, columns: Columns, read: int, used: int) -> Columns:
    names = f"'{columns.text}'" + (f" or '{columns.pair}'" if columns.pair else "")
    if not used:
        raise DataError(f"{source.path}: {names} is empty in all {read} rows; name other columns with --text-columns")
    if read > used:
        logger.warning("%s: %d of %d rows skipped, %s is empty there", source.path, read - used, read, names)
    return replace(columns, skipped=read - used)


def _rows(path: str, given: Given) -> Iterator[Row]:
    if path.startswith("datasets:"):
        return dataset_rows(path)
    if not path.strip():
        raise ConfigError("the data path is empty; give a file, a folder or datasets:NAME")
    place = Path(path).expanduser()
    try:
        if not place.exists():
            raise DataError(f"{path} does not exist{_sibling(place)}")
        if is_saved_dataset(place):
            return dataset_rows(f"datasets:{place}")
        files = files_below(place) if place.is_dir() else [place]
    except OSError as error:  # no rights, a name too long
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path and its rights") from error
    return itertools.chain.from_iterable(read_rows(file, given) for file in files)


def _sibling(place: Path) -> str:
    folder = place.parent
    if not folder.is_dir():
        return f", nor does the folder {folder}; check the path"
    close = difflib.get_close_matches(place.name, sorted(p.name for p in folder.iterdir()), n=1, cutoff=0.4)
    return f"; did you mean {folder / close[0]}?" if close else "; check the path"


def _record(row: Row, columns: Columns, named: tuple[str, ...]) -> Record | None:
    """The record of a row; None when its text or pair is empty."""
    text = _string(row, columns.text)
    pair = _string(row, columns.pair) if columns.pair else None
    if not text or (columns.pair and not pair):
        return None
    found = details(row)
    if named and "tags" in found:
        found |= {"tags": tuple(class_name(tag, named) for tag in found["tags"]), "classes": named}
    elif columns.label is not None:
        found = {**_label(row.values.get(columns.label), named, row.names.get(columns.label, ())), **found}
    wanted = columns.flags or [name for name in row.values if name not in (columns.text, columns.pair)]
    flags = {str(name): flag for name in wanted if (flag := _flag(row.values.get(name))) is not None}
    if missing := [name for name in columns.flags if name not in flags]:
        raise DataError(
            f"{row.where}: '{missing[0]}' is {row.values.get(missing[0])!r}, not 0 or 1, which a column of one class "
            "holds; correct it, or name other columns with --label-column"
        )
    return Record(text, pair, flags=flags, **found)


def _label(value: Any, named: tuple[str, ...], own: tuple[str, ...]) -> dict[str, Any]:
    """Fields of a record for the value of its label column.

    `named` are the user's names, `own` the file's names of its numbers. Where both name the same classes, the file's
    say which one a number is, and the user's in which order the model has them.
    """
    names = named or own
    reordered = names != own and sorted(names) == sorted(own)
    items = as_list(value)
    if items is not None:
        if any(isinstance(item, (list, tuple, Mapping)) for item in items):
            return {}  # spans of characters, or boxes: nothing that is a class of the text
        words = tuple(word for item in items if (word := _word(item)) is not None)
        return {"labels": tuple(class_name(word, own) for word in words) if reordered else words, "classes": names}
    word = _word(value)
    number = None if word is None else whole(word)
    if reordered and number is not None and number < len(own):
        return {"label": own[number], "classes": names}
    if number is None or number >= len(names) or word in named:  # such as 1 where the user's names are 1, 2, 3
        return {"label": word, "classes": names}
    return {"label": word, "classes": names, "label_name": names[number]}


def _flag(value: Any) -> bool | None:
    """Truth of a 0/1 column's value, None for any other value."""
    return _FLAGS.get(str(value).strip().lower())


def _string(row: Row, column: str) -> str:
    if column not in row.values:
        raise DataError(
            f"{row.where}: no column '{column}' in this row; "
            f"it has {', '.join(map(str, row.values))}; correct it, or give a single file instead of the folder"
        )
    value = row.values[column]
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    if not isinstance(value, str):
        kind = type(value).__name__
        raise DataError(f"{row.where}: '{column}' is {kind}, not text; correct it, or name another with --text-columns")
    return value.encode("utf-8", "replace").decode()  # tokenizers refuse unpaired surrogates, which JSON escapes allow


def _word(label: Any) -> str | None:
    """A label as text without outer spaces; booleans in JSON's spelling."""
    if label is None or (isinstance(label, float) and math.isnan(label)):
        return None
    return str(label).lower() if isinstance(label, bool) else str(label).strip()


_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def _holds_tags(sample: Iterable[Row], source: TextSource) -> bool:
    """True when the column that the user named was read as the tags of words, and so is no label of the text."""
    named = source.label_column
    return named is not None and any(named not in row.values and row.values.get("tags") for row in sample)
