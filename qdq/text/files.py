"""Read a data file row by row, whatever its format: JSON, tables, Parquet, Arrow, tokens with tags, plain text.

Every fault is a DataError that names the file, the line and what to do. Nothing here knows which column is the text;
that is `qdq.text.data`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from qdq.errors import DataError
from qdq.text.columnar import read_arrow, read_parquet
from qdq.text.columns import TAG_NAMES, WORD_NAMES, is_known_name, lowered
from qdq.text.documents import is_json_object, read_json, read_json_lines
from qdq.text.lines import MAX_LINE_BYTES, NOTHING_GIVEN, Given, Row, cut, head_of, shown, text_lines
from qdq.text.tables import DELIMITERS, find_dialect, is_number, read_table
from qdq.text.tagged import find_layout, join_words, read_sentences

__all__ = ["MAX_LINE_BYTES", "SUFFIXES", "Given", "Row", "files_below", "join_words", "read_rows"]

# Files that are read in a folder
SUFFIXES = (".jsonl", ".json", ".tsv", ".csv", ".txt", ".conll", ".parquet", ".arrow")
_SENTENCE_NAMES = ("sentence #", "sentence_id", "sentence id", "sent_id", "sentence_idx", "sentence")
_FASTTEXT = re.compile(r"__label__\S+\s")
_SLASHED = re.compile(r"(?:\s*\S+/(?:O|[BIESLUM][-_]\S+))+\s*")  # every word with its tag
_NUMBERED = re.compile(r"\s*(\d{1,2})[\s:]+\S")
_PREFIXED = re.compile(r"[A-Z]{2,}:\w+\s+\S")  # TREC's questions
# Documents and programs, which are text and hold no data one line each
_NO_DATA = (".yaml", ".yml", ".xml", ".html", ".htm", ".ipynb", ".toml", ".py", ".sql", ".ini")


def read_rows(path: Path, given: Given = NOTHING_GIVEN) -> Iterator[Row]:
    """Stream the rows of one file; its suffix says the kind, its content the rest; an unknown suffix is text.

    Raises DataError for a file that cannot be read, is not UTF-8 text, or holds a row that does not parse.
    """
    if path.suffix.lower() in _NO_DATA:
        raise DataError(
            f"{path}: a {path.suffix} file is not read; save its texts as JSON lines, a table or one a line"
        )
    reader = _READERS.get(path.suffix.lower())
    if reader is not None and given.header:
        raise DataError(
            f"{path}: --header names the columns of tables and tagged text, and this file has names of its own; leave "
            "--header out, or give one file that needs it"
        )
    try:
        yield from _text(path, given) if reader is None else reader(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the file and its rights") from error


def files_below(folder: Path) -> list[Path]:
    """Readable files below `folder` by known suffix, sorted by relative name, hidden ones left out.

    Raises DataError when there is none.
    """
    found = [p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
    names = sorted(name for p in found if not re.search(r"(^|/)\.", name := p.relative_to(folder).as_posix()))
    if not names:
        raise DataError(f"{folder}: no readable file in this folder; expected {', '.join(SUFFIXES)}")
    return [folder / name for name in names]


def _text(path: Path, given: Given) -> Iterator[Row]:
    """A table, tokens with tags, JSON lines or one text per line, as the first lines show."""
    head = head_of(path)
    if layout := find_layout(path, head, given):
        return read_sentences(path, layout)
    if path.suffix.lower() in _TABLES or given.header:
        return _sentences_of(path, read_table(path, given))
    content = [line for line in head if line[1].strip()]
    if content and is_json_object(content[0][1]):
        return read_json_lines(path)
    _check_plain(path, content[:50])
    return (Row(f"{path}, line {number}", {"text": text}) for number, text in text_lines(path) if text.strip())


def _check_plain(path: Path, content: Sequence[tuple[int, str]]) -> None:
    """Raise DataError for lines that look like a table, a JSON list or labelled text rather than one text each."""
    lines = [text for _, text in content]
    if lines and re.match(r"\s*\[\s*(\{|$)", lines[0]) and any('"' in text for text in lines[:3]):
        raise DataError(f"{path}: looks like a JSON list, not one text per line; name it .json")
    if hint := _looks_labelled(lines):
        raise DataError(f"{path}: looks like {hint}")
    content = [line for line in content if not line[1].startswith("#")] or content  # comments of column formats
    dialect = find_dialect(content, "\t")
    rows = [(number, text.split(dialect.delimiter)) for number, text in content]
    if _is_table([cells for _, cells in rows], dialect.delimiter):
        raise DataError(
            f"{path}: looks like a table split at {DELIMITERS[dialect.delimiter]}, not one text per line:{shown(rows)}"
            "name it .csv; where no line names its columns, name them with --header, such as --header label,text"
        )
    words = [(number, text.split()) for number, text in content]
    if _are_columns([cells for _, cells in words]):
        raise DataError(
            f"{path}: looks like columns with spaces between, not one text per line:{shown(words)}"
            "where they hold one token and its tag a line, name them with --header, such as --header token,pos,tag"
        )


def _looks_labelled(lines: Sequence[str]) -> str:
    """The layout of labelled text that all lines have, with the way out; "" for texts."""
    if lines and all(_FASTTEXT.match(text) for text in lines):
        return (
            "fastText's labelled lines (__label__… text), not one text per line; save it as TSV with the columns label "
            "and text"
        )
    if lines and all(_SLASHED.fullmatch(text) for text in lines):
        return "words with their tags behind a slash, not one text per line; save one token and its tag a line"
    numbers = [int(match[1]) for text in lines if (match := _NUMBERED.match(text))]
    counted = len(numbers) == len(lines) and set(numbers) == set(range(max(numbers, default=0) + 1)) != {0}
    if len(lines) >= 5 and (counted or all(map(_PREFIXED.match, lines))):
        return (
            f"a class in front of every text ({cut(lines[0])}), not one text per line; save it as TSV with the "
            "columns label and text"
        )
    return ""


def _are_columns(rows: Sequence[Sequence[str]]) -> bool:
    """True for as many words in every line, of which one place mostly holds signs, as - and * stand for nothing."""
    width = len(rows[0]) if rows else 0
    if len(rows) < 5 or width < 3 or any(len(row) != width for row in rows):
        return False
    signs = (sum(not any(map(str.isalnum, row[place])) for row in rows) for place in range(width - 1))
    return any(2 * count > len(rows) for count in signs)


def _is_table(rows: Sequence[Sequence[str]], delimiter: str) -> bool:
    """True when every row has as many columns, and tabs, names of columns or labels say that they are columns."""
    width = len(rows[0]) if rows else 0
    if width < 2 or len(rows) < 2 or any(len(row) != width for row in rows):
        return False
    known = sum(map(is_known_name, rows[0]))
    if delimiter == "\t" or known > 1:
        return True
    columns = [[row[n].strip() for row in rows] for n in range(width)]
    labels = any(
        all(map(is_number, cells[1:])) or (len(set(cells)) < len(cells) and not any(" " in cell for cell in cells))
        for cells in columns
    )
    return labels and (len(rows) > 2 or known > 0)


def _sentences_of(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """Sentences out of a table with one token a row and a column that numbers the sentences; else the rows as given.

    An empty number continues the sentence, as in the GMB corpus of Kaggle.
    """
    first = next(rows, None)
    if first is None:
        return
    # Columns by name
    names = {lowered(str(name)): str(name) for name in first.values}
    word, tag, number = (
        next((names[known] for known in group if known in names), None)
        for group in (WORD_NAMES, TAG_NAMES, _SENTENCE_NAMES)
    )
    rows = itertools.chain([first], rows)
    if word is None or tag is None or number is None or " " in str(first.values[word]).strip():
        yield from rows
        return
    # A sentence ends where another number stands
    words: list[str] = []
    tags: list[str] = []
    current, where = "", first.where
    for row in rows:
        if (stated := str(row.values[number]).strip()) not in ("", current):
            if words:
                yield Row(where, {"text": join_words(words), "words": words, "tags": tags})
            current, where, words, tags = stated, row.where, [], []
        words.append(str(row.values[word]))
        tags.append(str(row.values[tag]).strip())
    yield Row(where, {"text": join_words(words), "words": words, "tags": tags})


_TABLES = (".tsv", ".csv", ".tab", ".psv")
_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}
