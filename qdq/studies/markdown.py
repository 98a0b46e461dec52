"""Markdown as the pages have it: tables, and text between two markers of a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from qdq.errors import DataError


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], align: str = "---") -> str:
    """A table without a newline at its end; `align` ("--:" is right) is of the columns behind the first.

    >>> print(table(["model", "ms"], [["bert", 3]]))
    | model | ms |
    |---|---|
    | bert | 3 |
    """
    rule = "|".join(["", "---", *[align] * (len(headers) - 1), ""])
    return "\n".join([_row(headers), rule, *map(_row, rows)])


def _row(cells: Sequence[object]) -> str:
    return "|" + "".join(f" {cell} |" if cell != "" else " |" for cell in cells)


def fixed(value: float | None, digits: int) -> str:
    """A number with so many digits behind the point; a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def named(versions: Mapping[str, str], packages: Sequence[str]) -> str:
    """The installed ones of `packages` with their versions."""
    return ", ".join(f"{name} {versions[name]}" for name in packages if name in versions)


def filled(page: Path, parts: Mapping[str, str]) -> str:
    """The text of `page` with each of `parts` between its lines ``<!-- name:begin, … -->`` and ``<!-- name:end -->``.

    Raises DataError when the page lacks one of them.
    """
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        marked = rf"(<!-- {re.escape(name)}:begin, [^\n]*-->\n).*?(<!-- {re.escape(name)}:end -->)"
        begin, *end = re.split(marked, text, maxsplit=1, flags=re.DOTALL)
        if not end:
            raise DataError(
                f"{page.name}: has no '<!-- {name}:begin, … -->' … '<!-- {name}:end -->'; restore the markers"
            )
        text = "".join([begin, end[0], part, "\n", *end[1:]])
    return text
