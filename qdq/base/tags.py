"""Tags of entities, one per word, in any scheme: BIO, IOB1, BIOES, BILOU, BMES and IO."""

from __future__ import annotations

import re
from collections.abc import Sequence

OUTSIDE = "O"
# B and S (single, U for unit) begin an entity, I and M are in one, E (L for last) ends it.
PREFIXED = re.compile(r"([BIESLUM])[-_](.+)", re.IGNORECASE)
_INSIDE = {"L": "E", "U": "S", "M": "I"}
Entity = tuple[str, int, int]  # type, first word, last word


def split_tag(tag: str) -> tuple[str, str]:
    """(prefix, type) of a tag: B-PER is B and PER, PER alone I and PER, O and "" are O and nothing."""
    if tag.upper() == OUTSIDE or not tag:
        return OUTSIDE, ""
    match = PREFIXED.fullmatch(tag)
    if match is None:
        return "I", tag
    prefix = match[1].upper()
    return _INSIDE.get(prefix, prefix), match[2]


def entities(tags: Sequence[str]) -> list[Entity]:
    """Entities of one sentence, in order; an I that continues none begins one, as conlleval has it."""
    found: list[Entity] = []
    open_type, before = "", OUTSIDE
    for place, (prefix, kind) in enumerate(map(split_tag, tags)):
        begins = prefix in "BS" or kind != open_type or before in "ESO"
        if prefix == OUTSIDE:
            open_type = ""
        elif begins:
            found.append((kind, place, place))
            open_type = kind
        else:
            found[-1] = (kind, found[-1][1], place)
        before = prefix
    return found


def has_entities(names: Sequence[str]) -> bool:
    """True when the classes of a tagger are tags of entities: some begin with B- or I-, or O is one of them."""
    return any(PREFIXED.fullmatch(name) for name in names) or OUTSIDE in names
