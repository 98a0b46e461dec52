"""Lines of a text file with their numbers, rows with the place they stand at, and rows as messages show them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from qdq.errors import DataError

MAX_LINE_BYTES = 10 << 20  # a longer "line" is a file without line breaks; reading it would only eat memory
SNIFF_LINES = 200  # lines looked at to find out how a file is laid out
# First bytes of files that are not text, whatever their name says.
_MAGIC = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "save the sheet as CSV, or unpack it"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first (gunzip)"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook or another file of old Office", "save the sheet as CSV"),
    (b"BZh", "compressed with bzip2", "unpack it first (bunzip2)"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it first (unzstd)"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (b"Rar!\x1a", "a rar archive", "unpack it"),
    (b"SQLite format 3", "an SQLite database", "save the table as CSV"),
    (b"\x93NUMPY", "a NumPy array", "save its texts as JSON lines"),
    (b"\x80\x04", "a pickle, which can run code when read", "save its texts as JSON lines"),
    (b"\x80\x05", "a pickle, which can run code when read", "save its texts as JSON lines"),
    (b"PAR1", "a Parquet file", "name it .parquet"),
    (b"ARROW1", "an Arrow file", "name it .arrow"),
    (b"%PDF", "a PDF", "save its text as plain text"),
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file itself", "run git lfs pull"),
    (b"\xff\xfe", "UTF-16 by its byte order mark at byte 0 (line 1)", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 by its byte order mark at byte 0 (line 1)", "save it as UTF-8"),
)
_PAGE = (b"<!doctype html", b"<html", b"<?xml")


class Row(NamedTuple):
    """One row and where it stands, as messages spell it (``train.tsv, line 12``).

    `names` has the class names of columns that hold class numbers, where the file brings them.
    """

    where: str
    values: Mapping[str, Any]
    names: Mapping[str, tuple[str, ...]] = {}


@dataclass(frozen=True)
class Given:
    """Facts about a file that the user stated: `header` names its columns, `columns` those that must be in its header.

    A file with a `header` has no header line of its own.
    """

    header: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


NOTHING_GIVEN = Given()


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without line end); reads at most MAX_LINE_BYTES at a time.

    Raises DataError for bytes that are no UTF-8 text, naming the place.
    """
    offset = 0
    with path.open("rb") as handle:
        for number in itertools.count(1):
            raw = handle.readline(MAX_LINE_BYTES + 1)
            if not raw:
                return
            text = decode(raw, path, number, offset)
            if len(raw) > MAX_LINE_BYTES:
                raise DataError(f"{path}, line {number}: longer than {MAX_LINE_BYTES >> 20} MB; give one text per line")
            if number == 1 and not text.endswith("\n") and "\r" in text.rstrip("\r"):
                raise DataError(
                    f"{path}: its lines end with a carriage return alone, as old Mac programs write them; save it with "
                    "line feeds (tr '\\r' '\\n')"
                )
            yield number, text.rstrip("\r\n")
            offset += len(raw)


def decode(raw: bytes, path: Path, line: int, offset: int) -> str:
    """UTF-8 text of `raw`, which starts at byte `offset` and line `line` of the file; a leading BOM is dropped."""
    if offset == 0:
        _check_kind(raw, path)
    if (nul := raw.find(b"\0")) >= 0:
        raise DataError(
            f"{path}, line {line}: NUL byte at byte {offset + nul}, so this is a binary file (or UTF-16 text: save it "
            "as UTF-8); give JSON lines, TSV, CSV, Parquet or plain text"
        )
    try:
        return raw.decode("utf-8").removeprefix("\ufeff" if offset == 0 else "")
    except UnicodeDecodeError as error:
        if len(raw) > MAX_LINE_BYTES and error.start >= len(raw) - 3:
            return ""  # cut inside a character by the length limit, which is the fault to report
        place = f"byte {offset + error.start} (0x{raw[error.start]:02x})"
        line += raw.count(b"\n", 0, error.start)
        way = "save it as UTF-8 (iconv -f windows-1252 -t utf-8, where it comes from Windows)"
        raise DataError(f"{path}, line {line}: not UTF-8 at {place}; {way}") from None


def _check_kind(raw: bytes, path: Path) -> None:
    """Raise DataError when the first bytes say that the file is something else than text."""
    for magic, kind, way_out in _MAGIC:
        if raw.startswith(magic):
            raise DataError(f"{path}: is {kind}; {way_out}")
    if raw.lstrip().lower().startswith(_PAGE):
        raise DataError(
            f"{path}: is an HTML or XML page, not a data file (often a download that failed); download the data again"
        )


def head_of(path: Path) -> list[tuple[int, str]]:
    """The first SNIFF_LINES lines."""
    return list(itertools.islice(text_lines(path), SNIFF_LINES))


def shown(rows: Iterable[tuple[int, Sequence[str]]], count: int = 3) -> str:
    """The first `count` rows as they were read, one a line: ``  line 1: [text] [label]``, long cells cut."""
    lines = []
    for number, cells in itertools.islice(rows, count):
        few = [f"[{cut(cell)}]" for cell in cells[:6]] + (["…"] if len(cells) > 6 else [])
        lines.append(f"\n  line {number}: {' '.join(few)}")
    return "".join(lines) + "\n"


def cut(text: str, longest: int = 40) -> str:
    """`text` on one line, at most `longest` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= longest else f"{flat[: longest - 1]}…"
