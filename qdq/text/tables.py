"""Tables with a character between columns: find delimiter, quotes and header by content, then stream the rows."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qdq.errors import DataError
from qdq.text.columns import is_known_name, lowered
from qdq.text.lines import MAX_LINE_BYTES, NOTHING_GIVEN, Given, Row, cut, head_of, shown, text_lines

DELIMITERS: Mapping[str, str] = {"\t": "tab", ",": "','", ";": "';'", "|": "'|'"}
OWN = {".tsv": "\t", ".tab": "\t", ".csv": ","}  # the delimiter a suffix promises
_SAMPLE = 50
_EXCEL = re.compile(r"sep=(.)", re.IGNORECASE)  # a first line by which Excel is told the delimiter
_QUOTED_FIELD = re.compile(r'"(?:[^"]|"")*"')
Cells = tuple[int, list[str]]  # number of the row's first line, and its fields


@dataclass(frozen=True)
class Dialect:
    """The character between columns, and the way quotes count: not at all, or also behind spaces."""

    delimiter: str
    quoted: bool = True
    spaced: bool = False

    def __str__(self) -> str:
        return DELIMITERS.get(self.delimiter, repr(self.delimiter))


def read_table(path: Path, given: Given) -> Iterator[Row]:
    """Stream the rows of a table whose delimiter, quotes and header are found from its first lines.

    Raises DataError, showing the first lines as they were read, when the header is missing or a row does not fit it.
    """
    head = head_of(path)
    marked = head and _EXCEL.fullmatch(head[0][1].strip())
    dialect = Dialect(marked[1]) if marked else find_dialect(head, OWN.get(path.suffix.lower(), ","), given)
    rows = _cells(path, text_lines(path), dialect)
    if marked:
        next(rows)
    sample = list(itertools.islice(rows, _SAMPLE))
    names, start = _names(path, sample, dialect, given)
    for number, cells in itertools.chain(sample[start:], rows):
        if len(cells) != len(names):
            raise DataError(
                f"{path}, line {number}: {len(cells)} columns where the header has {len(names)} "
                f"({cut(', '.join(names), 200)}), split at {dialect}:"
                f"{shown([(number, cells)])}correct the row or the header"
            )
        yield Row(f"{path}, line {number}", dict(zip(names, cells, strict=True)))


def find_dialect(head: Sequence[tuple[int, str]], own: str, given: Given = NOTHING_GIVEN) -> Dialect:
    """The dialect in which the first lines are a table: every row as many columns as the first, two or more.

    Of several, one whose first row holds names of columns, then the one with `own`, the suffix's, delimiter. Where none
    fits, the one whose first row has columns and whose rows fit best, so that the row that does not fit is named.
    """
    ranked: list[tuple[bool, bool, float, Dialect]] = []
    for delimiter in sorted(DELIMITERS, key=lambda one: one != own):
        for dialect in _dialects(delimiter):
            rows = _sampled(head, dialect)
            width = len(rows[0]) if rows else 0
            if width < 2:
                continue
            share = sum(len(row) == width for row in rows) / len(rows)
            named = len(given.header) == width or any(map(is_known_name, rows[0]))
            ranked.append((share == 1, named, share, dialect))
    best = max(ranked, key=lambda entry: entry[:3], default=None)  # the first of equals: `own` comes first
    if best is None:
        return Dialect(own, quoted=own != "\t")
    unquoted_tab = best[3].delimiter == "\t" and not best[3].quoted
    return Dialect("\t") if unquoted_tab and _quotes_count(head) else best[3]


def _dialects(delimiter: str) -> tuple[Dialect, ...]:
    """Ways to read quotes. Behind tabs they are text first: GLUE's files hold lone quotation marks."""
    if delimiter == "\t":
        return Dialect("\t", quoted=False), Dialect("\t")
    return Dialect(delimiter), Dialect(delimiter, spaced=True)


def _sampled(head: Iterable[tuple[int, str]], dialect: Dialect) -> list[list[str]]:
    """Fields of the first rows; a row that does not parse ends them with one that has no columns."""
    rows: list[list[str]] = []
    lines = [text for _, text in head if text.strip()][: 2 * _SAMPLE]
    if not dialect.quoted:
        return [text.split(dialect.delimiter) for text in lines[:_SAMPLE]]
    reader = _csv_reader((text + "\n" for text in lines), dialect)
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        rows.extend(itertools.islice(reader, _SAMPLE))
    except csv.Error:
        rows.append([])  # a quote that stays open may only be cut off by the end of the sample
    finally:
        csv.field_size_limit(limit)
    return rows


def _csv_reader(lines: Iterable[str], dialect: Dialect) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=dialect.delimiter, skipinitialspace=dialect.spaced, strict=True)


def _quotes_count(head: Iterable[tuple[int, str]]) -> bool:
    """True when the tab-separated fields are quoted as CSV quotes them: all closed, some with doubled quotes inside."""
    fields = [field for _, text in head for field in text.split("\t") if field.startswith('"')]
    return all(_QUOTED_FIELD.fullmatch(field) for field in fields) and any('""' in field[1:-1] for field in fields)


def _cells(path: Path, lines: Iterable[tuple[int, str]], dialect: Dialect) -> Iterator[Cells]:
    """Fields of every row that has any. Raises DataError for a quote that is not closed."""
    if not dialect.quoted:
        yield from ((number, text.split(dialect.delimiter)) for number, text in lines if text.strip())
        return
    reader = csv.reader(
        (text + "\n" for _, text in lines), delimiter=dialect.delimiter, skipinitialspace=dialect.spaced, strict=True
    )
    while True:
        start = reader.line_num + 1
        # The limit is process-wide and by default 131072 characters; it is ours only while one row is read.
        process_limit = csv.field_size_limit(MAX_LINE_BYTES)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            hint = "close the quote opened in this row, and double quotes inside quoted text"
            if "new-line character" in str(error):
                hint = "a line of it ends with a carriage return alone; save it with line feeds, or quote that text"
            raise DataError(f"{path}, line {start}: not valid CSV ({error}); {hint}") from None
        finally:
            csv.field_size_limit(process_limit)
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield start, cells


def _names(path: Path, sample: Sequence[Cells], dialect: Dialect, given: Given) -> tuple[list[str], int]:
    """Names of the columns, and the number of rows that the header takes: 1, or 0 when the names were given."""
    if not sample:
        return [], 0
    number, first = sample[0]
    if given.header:
        if len(given.header) != len(first):
            raise DataError(
                f"{path}: --header names {len(given.header)} columns ({', '.join(given.header)}) and the file has "
                f"{len(first)}, split at {dialect}:{shown(sample)}"
                "name each of them"
            )
        if list(map(lowered, given.header)) == list(map(lowered, first)):
            raise DataError(f"{path}: its first line holds the names that --header gives; leave --header out")
        return list(given.header), 0
    stated = bool(given.columns) and all(name in first for name in given.columns)
    if not stated and (reason := _headless(first, [cells for _, cells in sample[1:]])):
        example = ",".join("label" if cell.strip().isdigit() else "text" for cell in first[:2])
        raise DataError(
            f"{path}: has no header line; {reason}. Its first lines as they were read:{shown(sample)}"
            f"give the names of its columns with --header, such as --header {example}; if line {number} does name "
            "them, say which one is the text with --text-columns"
        )
    names = [cell.strip() or f"column {place}" for place, cell in enumerate(first, start=1)]  # pandas' index has none
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path}, line {number}: column '{twice[0]}' stands twice in the header; rename one of them")
    return names, 1


def _headless(first: Sequence[str], others: Sequence[Sequence[str]]) -> str:
    """The reason the first row is taken for data, "" when it may be a header."""
    if any(map(is_known_name, first)):
        return ""
    for place, cell in enumerate(cell.strip() for cell in first):
        if is_number(cell):
            return f"the first line holds the number {cell}"
        if len(cell.split()) > 4 or len(cell) > 60 or cell.endswith((".", "!", "?", "。", "！", "？")):
            return f"the first line holds a text ({cut(cell)})"
        if cell and any(place < len(row) and row[place].strip() == cell for row in others):
            return f"'{cut(cell)}' of the first line stands in other lines of that column, too"
    return ""


def is_number(text: str) -> bool:
    """True for what Python reads as a number; names of columns such as nan or inf are none."""
    try:
        float(text)
    except ValueError:
        return False
    return any(character.isdigit() for character in text)
