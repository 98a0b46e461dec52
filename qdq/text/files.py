"""Read text files row by row: JSON lines, JSON documents, TSV, CSV, token-per-line and plain text.

Every fault is a DataError that names the file, the line and what to do. Nothing here knows which column is the text;
that is `qdq.text.data`.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qdq.errors import DataError

SUFFIXES = (".jsonl", ".json", ".tsv", ".csv", ".txt", ".conll")  # files that are read in a folder
MAX_LINE_BYTES = 10 << 20  # a longer "line" is a file without line breaks; reading it would only eat memory
MAX_DOCUMENT_BYTES = 256 << 20  # a JSON list or SQuAD file has to be parsed as a whole
_SNIFF_ROWS = 50
_TAGGED = re.compile(r"\S+([ \t]+\S+){0,2}[ \t]+(O|[BIESLU]-\S+)")  # CoNLL: token, up to two columns, tag


class Row(NamedTuple):
    """One row and where it stands, as messages spell it (``train.tsv, line 12``)."""

    where: str
    values: Mapping[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """Stream the rows of one file; the format follows the suffix, an unknown suffix is read as text.

    Raises DataError for a file that cannot be read, is not UTF-8 text, or holds a row that does not parse.
    """
    reader = _READERS.get(path.suffix.lower(), _plain_or_tagged)
    try:
        yield from reader(path)
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


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without line end); reads at most MAX_LINE_BYTES at a time."""
    offset = 0
    with path.open("rb") as handle:
        for number in itertools.count(1):
            raw = handle.readline(MAX_LINE_BYTES + 1)
            if not raw:
                return
            text = _decode(raw, path, number, offset)
            if len(raw) > MAX_LINE_BYTES:
                raise DataError(f"{path}, line {number}: longer than {MAX_LINE_BYTES >> 20} MB; give one text per line")
            yield number, text.rstrip("\r\n")
            offset += len(raw)


def _decode(raw: bytes, path: Path, line: int, offset: int) -> str:
    """UTF-8 text of `raw`, which starts at byte `offset` and line `line` of the file; a leading BOM is dropped."""
    if offset == 0 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: the byte order mark at byte 0 (line 1) says UTF-16; save it as UTF-8")
    if (nul := raw.find(b"\0")) >= 0:
        raise DataError(
            f"{path}, line {line}: NUL byte at byte {offset + nul}, so this is a binary file (or UTF-16 text: save it "
            "as UTF-8); give JSON lines, TSV, CSV or plain text"
        )
    try:
        return raw.decode("utf-8").removeprefix("\ufeff" if offset == 0 else "")
    except UnicodeDecodeError as error:
        if len(raw) > MAX_LINE_BYTES and error.start >= len(raw) - 3:
            return ""  # cut inside a character by the length limit, which is the fault to report
        place = f"byte {offset + error.start} (0x{raw[error.start]:02x})"
        line += raw.count(b"\n", 0, error.start)
        raise DataError(f"{path}, line {line}: not UTF-8 at {place}; save it as UTF-8") from None


def _loads(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line + error.lineno - 1}"
        raise DataError(f"{path}, {place}: not valid JSON ({error.msg}, column {error.colno}); correct it") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {line}: cannot be parsed as JSON ({error}); correct it") from None


def _json_lines(path: Path) -> Iterator[Row]:
    """One JSON object per line; blank lines are skipped."""
    for number, text in _text_lines(path):
        if text.strip():
            yield _object(_loads(text, path, number), f"{path}, line {number}")


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f'{where}: expected a JSON object such as {{"text": "…"}}, found {type(value).__name__}')
    return Row(where, value)


def _json(path: Path) -> Iterator[Row]:
    """JSON lines, or one document: a list of objects, a pretty-printed object, or the SQuAD layout."""
    with path.open("rb") as handle:
        head = handle.read(1 << 16).decode("utf-8", errors="ignore").removeprefix("\ufeff").lstrip()
    if head.startswith("[") or re.match(r"\{\s*\n", head) or '"paragraphs"' in head:
        return _json_document(path)
    return _json_lines(path)


def _json_document(path: Path) -> Iterator[Row]:
    if path.stat().st_size > MAX_DOCUMENT_BYTES:
        raise DataError(f"{path}: over {MAX_DOCUMENT_BYTES >> 20} MB in one JSON value; give JSON lines, one per row")
    value = _loads(_decode(path.read_bytes(), path, 1, 0), path, 1)
    items = value.get("data", [value]) if isinstance(value, dict) else value
    for index, item in enumerate(items if isinstance(items, list) else [items], start=1):
        row = _object(item, f"{path}, item {index}")
        yield from _squad(row) if "paragraphs" in row.values else (row,)


def _squad(article: Row) -> Iterator[Row]:
    """Flatten one SQuAD article to (question, context) rows."""
    try:
        for paragraph in article.values["paragraphs"]:
            for question in paragraph["qas"]:
                known = {key: question[key] for key in ("id", "answers") if key in question}
                yield Row(article.where, {"question": question["question"], "context": paragraph["context"], **known})
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{article.where}: looks like SQuAD but lacks context, qas or question ({error!r}); correct it"
        ) from None


def _tsv(path: Path) -> Iterator[Row]:
    """Header and tab-split rows. No quote handling: GLUE files hold lone quotation marks as text."""
    lines = ((number, text.split("\t")) for number, text in _text_lines(path) if text.strip())
    return _table(path, lines)


def _csv(path: Path) -> Iterator[Row]:
    """Header and comma-separated rows, quoted fields may span lines."""
    return _table(path, _csv_cells(path))


def _csv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((text + "\n" for _, text in _text_lines(path)), strict=True)
    while True:
        start = reader.line_num + 1
        # The limit is process-wide and by default 131072 characters; it is ours only while one row is read.
        process_limit = csv.field_size_limit(MAX_LINE_BYTES)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            hint = "close the quote opened in this row, and double quotes inside quoted text"
            raise DataError(f"{path}, line {start}: not valid CSV ({error}); {hint}") from None
        finally:
            csv.field_size_limit(process_limit)
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield start, cells


def _table(path: Path, lines: Iterator[tuple[int, list[str]]]) -> Iterator[Row]:
    number, header = next(lines, (1, []))
    if twice := [name for name in header if header.count(name) > 1]:
        raise DataError(f"{path}, line {number}: column '{twice[0]}' stands twice in the header; rename one of them")
    for number, cells in lines:
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(cells)} columns where the header has {len(header)} "
                f"({', '.join(header)}); correct the row or the header"
            )
        yield Row(f"{path}, line {number}", dict(zip(header, cells, strict=True)))


def _plain_or_tagged(path: Path) -> Iterator[Row]:
    """One text per line, unless the first lines show token-per-line tags (CoNLL) or JSON objects."""
    head = list(itertools.islice((text for _, text in _text_lines(path) if text.strip()), _SNIFF_ROWS))
    if len(head) > 1 and all(_TAGGED.fullmatch(text.strip()) for text in head):
        return _tagged(path)
    if head and _is_json_object(head[0]):
        return _json_lines(path)
    return (Row(f"{path}, line {number}", {"text": text}) for number, text in _text_lines(path) if text.strip())


def _is_json_object(text: str) -> bool:
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _tagged(path: Path) -> Iterator[Row]:
    """``token TAG`` lines with a blank line between sentences: one row per sentence, with its words and tags.

    The tag is the last column, "" on a line that has the token alone.
    """
    lines = ((number, text.split()) for number, text in _text_lines(path))
    for blank, block in itertools.groupby(lines, key=lambda line: not line[1]):
        if not blank:
            sentence = list(block)
            rows = [cells for _, cells in sentence if cells[0] != "-DOCSTART-"]
            if rows:
                words = [cells[0] for cells in rows]
                tags = [cells[-1] if len(cells) > 1 else "" for cells in rows]
                yield Row(f"{path}, line {sentence[0][0]}", {"text": join_words(words), "words": words, "tags": tags})


def join_words(tokens: Iterable[str]) -> str:
    """Sentence of `tokens`; character-tagged text (Chinese) is joined without spaces."""
    words = list(tokens)
    single = sum(len(word) == 1 and not word.isascii() for word in words)
    return ("" if 2 * single > len(words) else " ").join(words)


_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".tsv": _tsv,
    ".csv": _csv,
}
