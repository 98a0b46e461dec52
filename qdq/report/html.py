"""HTML and SVG as text: escaping, elements, tables, numbers. Every value from outside goes through `text`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any


def text(value: Any) -> str:
    """A value as text that cannot become markup; control characters, which HTML forbids, as their pictures."""
    plain = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in str(value))
    return html.escape(plain.replace("\u202e", "\u2400").replace("\u202d", "\u2400"), quote=True)


def element(tag: str, *content: str, **attributes: Any) -> str:
    """``<tag attribute="…">content</tag>``; ``class_`` is class, an attribute that is None is left out.

    `content` is markup; attributes are escaped.
    """
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{text(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{named}>{''.join(content)}</{tag}>"


def paragraph(*sentences: str, class_: str | None = None) -> str:
    """A paragraph of plain sentences."""
    return element("p", text(" ".join(filter(None, sentences))), class_=class_)


def code(command: str) -> str:
    """A command to copy."""
    return element("pre", element("code", text(command)))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table whose cells are markup; columns in `numbers` are set right. It scrolls by itself on a small screen."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(element(tag, cell, class_="n" if index in numbers else None) for index, cell in enumerate(row))

    body = "".join(element("tr", cells("td", row)) for row in rows)
    return element(
        "div",
        element("table", element("thead", element("tr", cells("th", head))), element("tbody", body)),
        class_="scroll",
    )


def section(anchor: str, title: str, *content: str) -> str:
    """A part of the page; "" when it has no content."""
    inside = "".join(content)
    return element("section", element("h2", text(title)), inside, id=anchor) if inside else ""


def details(summary: str, *content: str, open_: bool = False) -> str:
    """A part that opens when its line is clicked; `summary` is plain text."""
    return element("details", element("summary", text(summary)), *content, open="" if open_ else None)


def number(value: float | None, digits: int = 3) -> str:
    """A number with that many significant digits and no exponent where people can read it; – for None."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 1e-4:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{digits}g}"


def fixed(value: float | None, digits: int) -> str:
    """A number with that many decimals; – for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def megabytes(size: float) -> str:
    """Bytes as megabytes."""
    return f"{size / 1e6:.1f} MB"
