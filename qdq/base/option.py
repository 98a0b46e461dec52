"""Declaration of an option: one dataclass field says everything there is to say about it.

    samples: int = option(128, "calibration texts", "calibrate", group="text", within=(1, 1_000_000))

declares ``--samples N`` of the command line with its default, its help ("calibration texts (default: 128)"), the last
stage that reads it, its group in the help, and its range.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypedDict, Unpack

from qdq.base.config import choice
from qdq.errors import ConfigError

FREE = None  # decided_by of an option that no stage decides for the later ones


class Details(TypedDict, total=False):
    """Part of a declaration that only some options have."""

    choices: Collection[str]  # every valid value
    among: Collection[int]  # every valid number
    within: tuple[int, int]  # smallest and largest valid number, of every one in a list
    positive: bool  # any number above 0 is valid
    repeated: bool  # the option is given once per value
    read: Callable[[str], Any]  # a word of the command line to the value; else by the field's type
    positional: bool  # the value stands for itself, without the option's name
    common: bool  # one of the few that --help shows where --help-all shows the rest


def option(
    default: Any,
    text: str,
    decided_by: str | None = FREE,
    metavar: str = "",
    *,
    group: str = "",
    **details: Unpack[Details],
) -> Any:
    """Declare a field of an options dataclass; the module's text has an example.

    Args:
        default: value when the option is not given; MISSING when it has to be.
        text: help without choices, and without the default unless that is found out later: "(default: detected)".
        decided_by: last stage that reads the option: a later stage's command starts from files it has decided and
            cannot change it. FREE: every stage's command may.
        metavar: placeholder of the value in the help; "" is N for a whole number and NAME for text.
        group: group of the option in the help; "" for a command with a single one.
        details: see `Details`.
    """
    about = {"help": text, "decided_by": decided_by, "metavar": metavar, "group": group, **details}
    return field(default=default, metadata=about)


def flag(name: str) -> str:
    """Spelling of a field on the command line: ``--eval-data`` for eval_data."""
    return f"--{name.replace('_', '-')}"


def value_text(value: Any) -> str:
    """Return a value as it is typed: True is on, (32, 64) is 32,64, and None in a list is all."""
    if isinstance(value, tuple):
        return ",".join("all" if part is None else str(part) for part in value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def help_of(declared: Field[Any], default: bool = True) -> str:
    """Return the help of an option: its text, its choices and, unless told otherwise, its default."""
    text, _, stated = declared.metadata["help"].partition(" (default: ")
    valid = declared.metadata.get("choices") or map(str, declared.metadata.get("among", ()))
    text = ": ".join(part for part in (text, ", ".join(valid)) if part)
    if not default or declared.default is MISSING:
        return text
    return f"{text} (default: {stated or f'{value_text(declared.default)})'}".lstrip()


def check(options: Any) -> None:
    """Raise ConfigError for the first value that its declaration does not allow."""
    for declared in fields(options):
        check_value(declared, getattr(options, declared.name), flag(declared.name))


def check_value(declared: Field[Any], value: Any, where: str) -> None:
    """Raise ConfigError, beginning with `where`, for a value that the declaration does not allow. None is allowed."""
    about = declared.metadata
    if value is None:
        return
    if "choices" in about:
        choice(value, about["choices"], where)
    if "among" in about and value not in about["among"]:
        nearest = min(about["among"], key=lambda known: abs(known - value))
        raise ConfigError(
            f"{where}: {value} is none of {', '.join(map(str, about['among']))}; the nearest is {nearest}"
        )
    if "within" in about:
        least, most = about["within"]
        for number in value if isinstance(value, (tuple, list)) else (value,):
            if number is not None and not least <= number <= most:
                raise ConfigError(f"{where}: {number} is outside {least}..{most}")
    if "positive" in about and not value > 0:
        raise ConfigError(f"{where}: {value} must be positive")


def values_for(cls: type[Any], options: object) -> dict[str, Any]:
    """Values that `options` has for the fields of the dataclass `cls`, by name."""
    return {known.name: getattr(options, known.name) for known in fields(cls) if hasattr(options, known.name)}


def as_json(options: Any) -> dict[str, Any]:
    """Plain JSON value of every option."""
    values = {known.name: getattr(options, known.name) for known in fields(options)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
