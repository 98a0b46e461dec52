"""Values of the command line from what was typed; every message says what is expected, with an example."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from typing import Any


def names(text: str) -> tuple[str, ...]:
    """Read a comma-separated list."""
    return tuple(name for name in text.split(",") if name)


def expecting(expected: str, read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Wrap `read` so that a ValueError becomes a message that says what is expected."""

    def value(text: str) -> Any:
        try:
            return read(text)
        except ValueError:
            raise ArgumentTypeError(f"expected {expected}, found '{text}'") from None

    return value


# Type of an option, as its declaration writes it -> how to read it.
VALUES: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "int": expecting("a whole number, such as 4", int),
    "float": expecting("a number, such as 0.5", float),
    "tuple[str, ...]": names,
    "tuple[int, ...]": expecting("whole numbers, such as 32,64,128", lambda text: tuple(map(int, names(text)))),
    "tuple[int | None, ...]": expecting(
        "whole numbers or all, such as 1,16,all",
        lambda text: tuple(None if part == "all" else int(part) for part in names(text)),
    ),
}
