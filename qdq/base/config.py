"""One strict loader for frozen configuration dataclasses, and the "did you mean" of every misspelling."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from qdq.errors import ConfigError

T = TypeVar("T")


def nearest(value: str, valid: Iterable[str]) -> str:
    """A clause such as ``did you mean 'max'? (valid: max, percentile)`` for an error message."""
    options = sorted(valid)
    match = difflib.get_close_matches(value.lower(), [option.lower() for option in options], n=1, cutoff=0.5)
    hint = next((f"did you mean '{o}'? " for o in options if match and o.lower() == match[0]), "")
    return f"{hint}(valid: {', '.join(options)})"


def choice(value: str, valid: Iterable[str], what: str) -> str:
    """Return `value` when valid, else raise ConfigError naming the nearest valid one.

    A value read from a file may be anything, such as a list or true.
    """
    options = tuple(valid)
    if value not in options:
        raise ConfigError(f"{what}: unknown value '{value}'; {nearest(str(value), options)}")
    return value


def load_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML mapping from a file. Raises ConfigError naming file and reason."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    try:
        value = json.loads(text) if path.suffix == ".json" else _yaml(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid {'JSON' if path.suffix == '.json' else 'YAML'} ({error})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of option names to values, found {type(value).__name__}")
    return value


def _yaml(text: str) -> Any:
    import yaml  # lazy: only spec files need it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build frozen dataclass `cls` from `values`; unknown keys and wrong types raise ConfigError.

    Lists become tuples where the field is a tuple; nothing else is converted, so values are stored as the
    user typed them. `where` names the source (a file, an option) in messages.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key '{key}'; {nearest(str(key), fields)}")
    built = {key: _typed(value, hints[key], f"{where}: {key}") for key, value in values.items()}
    try:
        return cls(**built)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as the type hint wants it (lists as tuples, int as float), or raise ConfigError."""
    # Types made of others: the first alternative that fits, every element of a tuple, one of the literals
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _typed(value, option, where)
            except ConfigError:
                continue
        raise ConfigError(f"{where}: expected {hint}, found {value!r}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, found {value!r}")
        return tuple(_typed(item, arguments[0], where) for item in value)
    if origin is dict:
        return value if isinstance(value, dict) else _mismatch(value, dict, where)
    if origin is typing.Literal:
        return choice(value, arguments, where) if isinstance(value, str) else _mismatch(value, hint, where)
    # Plain types
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**1023 else _mismatch(value, hint, where)  # beyond that it overflows
    if hint is type(None):
        return None if value is None else _mismatch(value, hint, where)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        _mismatch(value, hint, where)
    return value


def _mismatch(value: Any, hint: Any, where: str) -> Any:
    raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}, found {value!r}")
