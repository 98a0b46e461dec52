"""Rows of JSON: one object a line, a list of objects, pandas' forms of a table, and SQuAD's articles."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qdq.errors import DataError
from qdq.text.columns import is_known_name
from qdq.text.lines import Row, decode, text_lines

MAX_DOCUMENT_BYTES = 256 << 20  # a JSON list or SQuAD file has to be parsed as a whole
_COLUMNS_LINE = re.compile(r'\{\s*"[^"]*"\s*:\s*[\[{]')  # a document that begins with a column


def read_json_lines(path: Path) -> Iterator[Row]:
    """One JSON object per line; blank lines are skipped."""
    for number, text in text_lines(path):
        if text.strip():
            yield _object(_loads(text, path, number), f"{path}, line {number}")


def read_json(path: Path) -> Iterator[Row]:
    """JSON lines, or one document: a list of objects, a table by columns, or the SQuAD layout."""
    with path.open("rb") as handle:
        head = handle.read(1 << 16).decode("utf-8", errors="ignore").removeprefix("\ufeff").lstrip()
    if head.startswith("[") or re.match(r"\{\s*\n", head) or '"paragraphs"' in head:
        return _document(path)
    single = len(head.splitlines()) < 2 and _COLUMNS_LINE.match(head)
    return _document(path) if single and _is_table(path) else read_json_lines(path)


def _is_table(path: Path) -> bool:
    """True for one JSON object that is a table by columns, not a row."""
    if path.stat().st_size > MAX_DOCUMENT_BYTES:
        return False
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    tabular = isinstance(value, dict) and (_by_row(value) or _columns(value) is not None)
    return tabular or (isinstance(value, dict) and isinstance(value.get("data"), list))


def is_json_object(text: str) -> bool:
    """True for a line that is a JSON object."""
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _document(path: Path) -> Iterator[Row]:
    if path.stat().st_size > MAX_DOCUMENT_BYTES:
        raise DataError(f"{path}: over {MAX_DOCUMENT_BYTES >> 20} MB in one JSON value; give JSON lines, one per row")
    value = _loads(decode(path.read_bytes(), path, 1, 0), path, 1)
    items = _items(value, path)
    for index, item in enumerate(items, start=1):
        row = _object(item, f"{path}, item {index}")
        yield from _squad(row) if "paragraphs" in row.values else (row,)


def _items(value: Any, path: Path) -> Sequence[Any]:
    """The rows of a document: the list itself, the list under "data", or what pandas' to_json makes of a table."""
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    names, data = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):  # split
        if any(len(row) != len(names) for row in data):
            raise DataError(f"{path}: a row under 'data' has not the {len(names)} values that 'columns' names")
        return [dict(zip(map(str, names), row, strict=True)) for row in data]
    if isinstance(data, list):
        return data
    if _by_row(value):
        return list(value.values())
    columns = _columns(value)
    if columns is not None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"{path}: its columns are of different lengths ({lengths}); give as many values in each")
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    splits = [name for name, rows in value.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
    if splits and len(splits) == len(value) and "paragraphs" not in value:
        raise DataError(f"{path}: holds several lists of rows ({', '.join(splits)}); save each in a file of its own")
    return [value]


def _by_row(value: Mapping[str, Any]) -> bool:
    """True for objects by the names of rows, of which each holds named values, as pandas' orient="index" writes."""
    rows = list(value.values())
    if not rows or not all(isinstance(row, dict) and row for row in rows):
        return False
    return any(map(is_known_name, rows[0])) and not any(map(is_known_name, value))


def _columns(value: Mapping[str, Any]) -> dict[str, list[Any]] | None:
    """A table by columns: lists of values, or pandas' objects of values by row name; None for anything else."""
    if not value or any(name in value for name in ("tokens", "words", "paragraphs", "context", "data")):
        return None
    parts = list(value.values())
    if all(isinstance(part, dict) for part in parts) and all(part.keys() == parts[0].keys() for part in parts):
        return {name: list(part.values()) for name, part in value.items()}
    if all(isinstance(part, list) for part in parts) and not any(
        isinstance(item, dict) for part in parts for item in part
    ):
        return dict(value)
    return None


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


def _loads(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line + error.lineno - 1}"
        raise DataError(f"{path}, {place}: not valid JSON ({error.msg}, column {error.colno}); correct it") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {line}: cannot be parsed as JSON ({error}); correct it") from None


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f'{where}: expected a JSON object such as {{"text": "…"}}, found {type(value).__name__}')
    return Row(where, value)
