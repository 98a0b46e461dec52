"""One section of a configuration out of a mapping: keys by name, refusals with their reason, values by type."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from qdq.base.config import from_mapping, nearest
from qdq.errors import ConfigError

T = TypeVar("T")
_NUMBER = re.compile(r"[+-]?\d+[eE][+-]?\d+")  # YAML 1.1 reads it as text: a number with an exponent needs a point


def section(cls: type[T], values: Any, where: str, refused: Mapping[str, str] | None = None) -> T:
    """The dataclass `cls` of a section; None is its defaults. `refused`: known keys, and why they are not taken.

    Raises ConfigError, beginning with `where`, for a key that is refused or unknown, and for a wrong value.
    """
    given = mapping({} if values is None else values, where)
    for key, value in given.items():
        if reason := (refused or {}).get(key):
            raise ConfigError(f"{where}: {key}: {reason}")
        _check_number(value, f"{where}: {key}")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # T is a dataclass
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in given and all(key in _names(cls) for key in given):
            raise ConfigError(f"{where}: has no {field.name}; give one")
    return from_mapping(cls, given, where)


def _names(cls: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def typed(kinds: Mapping[str, type[T]], values: Any, where: str, refused: Mapping[str, str] | None = None) -> T:
    """The object of a mapping with a `type`, such as ``{type: AdamW, beta1: 0.9}``; `kinds` has a dataclass for each.

    `refused`: types that are known and why they are not taken. Raises ConfigError naming the nearest type.
    """
    given = dict(mapping(values, where))
    name = given.pop("type", None)
    if name is None:
        raise ConfigError(f"{where}: has no type; give one of {', '.join(kinds)}")
    if reason := (refused or {}).get(str(name)):
        raise ConfigError(f"{where}: type {name}: {reason}")
    if name not in kinds:
        raise ConfigError(f"{where}: unknown type '{name}'; {nearest(str(name), kinds)}")
    return section(kinds[name], given, f"{where}: {name}")


def mapping(values: Any, where: str) -> Mapping[str, Any]:
    """`values`, which is a mapping of names. Raises ConfigError."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected keys with values, found {values!r}")
    for key in values:
        if not isinstance(key, str):
            raise ConfigError(f"{where}: expected names as keys, found {key!r}")
    return values


def _check_number(value: Any, where: str) -> None:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        mantissa, exponent = re.split("[eE]", value.strip())
        raise ConfigError(f"{where}: YAML reads {value} as text; write {mantissa}.0e{exponent}")
    if isinstance(value, (list, tuple)):
        for item in value:
            _check_number(item, where)


def within(value: float, least: float, most: float, where: str) -> None:
    """Raise ConfigError for a number outside [least, most]."""
    if not least <= value <= most:
        raise ConfigError(f"{where}: {value} is outside {least:g}..{most:g}")


def positive(value: float | None, where: str) -> None:
    """Raise ConfigError for a number that is not above 0; None is allowed."""
    if value is not None and not value > 0:
        raise ConfigError(f"{where}: {value} must be positive")
