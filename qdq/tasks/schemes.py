"""Tagging schemes: entities in the scheme of a model, whatever scheme the data have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qdq.base.tags import OUTSIDE, PREFIXED, Entity, entities, has_entities, split_tag
from qdq.errors import DataError
from qdq.tasks.labels import Classes
from qdq.text.data import Record


@dataclass(frozen=True)
class Scheme:
    """The tags a model knows, and how it writes an entity: the prefixes of its first, inner, last and single word."""

    names: tuple[str, ...]

    @property
    def _written(self) -> tuple[str, str, str, str]:
        """Prefixes for the first, an inner, the last and the only word of an entity; "" writes the type alone."""
        prefixes = {match[1] for name in self.names if (match := PREFIXED.fullmatch(name))}
        if not prefixes:
            return "", "", "", ""
        inner = "M" if "M" in prefixes and "I" not in prefixes else "I"
        first = "B" if "B" in prefixes else inner
        last = next((prefix for prefix in "EL" if prefix in prefixes), inner)
        return first, inner, last, next((prefix for prefix in "SU" if prefix in prefixes), first)

    def tags(self, found: Sequence[Entity], words: int) -> list[str]:
        """One tag per word for these entities, as this model writes them."""
        first, inner, last, single = self._written
        separator = "_" if any(re.match(r"[BIESLUM]_", name) for name in self.names) else "-"
        tags = [OUTSIDE] * words
        for kind, start, end in found:
            for place in range(start, end + 1):
                prefix = first if place == start else last if place == end else inner
                prefix = single if start == end else prefix
                tags[place] = f"{prefix}{separator}{kind}" if prefix else kind
        return tags


def gold_tags(records: Sequence[Record], names: Sequence[str], required: bool) -> tuple[list[list[str]] | None, str]:
    """Tags of every record as the model with the classes `names` writes them, or None and the reason it cannot.

    A tag may be the model's own, its number, or of another scheme with the same types of entities. Raises DataError
    when `required` and a tag is missing or unknown to the model.
    """
    known, scheme = Classes(tuple(names), len(names)), Scheme(tuple(names))
    found: list[list[str]] = []
    for number, record in enumerate(records, start=1):
        reason, tags = _missing(record), None
        if not reason:
            tags = _own(record, known) or _translated(record.tags, scheme, known)
            reason = "" if tags else _unknown(record, known)
        if tags is None:
            reason = f"evaluation text {number} {reason}"
            if required:
                raise DataError(f"{reason}; give a file tagged for this model, or the names of its numbers by --labels")
            return None, reason
        found.append(tags)
    return found, ""


def _missing(record: Record) -> str:
    if not record.tags or len(record.tags) != len(record.words):
        return "has no tags (--label-column names their column, and says what is wrong with it)"
    if "" in record.tags:
        return f"has no tag for its word '{record.words[record.tags.index('')]}'"
    return ""


def _own(record: Record, known: Classes) -> list[str] | None:
    """The model's names of the tags, where it knows every one of them by name or number."""
    places = [known.index(tag, None, record.classes) for tag in record.tags]
    if None in places:
        return None
    return [known.names[place] for place in places if place is not None]


def _translated(tags: Sequence[str], scheme: Scheme, known: Classes) -> list[str] | None:
    """The same entities in the model's scheme, None when it has no such types of entities."""
    if not has_entities(known.names) or not (has_entities(tags) or "O" in known.names):
        return None
    written = scheme.tags(entities(tags), len(tags))
    places = [known.index(tag) for tag in written]
    if None in places:
        return None
    return [known.names[place] for place in places if place is not None]


def _unknown(record: Record, known: Classes) -> str:
    types = {split_tag(name)[1].lower() for name in known.names}
    strange = [tag for tag in record.tags if known.index(tag, None, record.classes) is None]
    first = next((tag for tag in strange if split_tag(tag)[1].lower() not in types), strange[0])
    return f"has tag '{first}', unknown to the model (it knows {known})"
