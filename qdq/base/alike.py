"""Names that a word may stand for: an abbreviation, another tool's name, a part of the words, a misspelling."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

MOST = 3  # suggestions in a message
LEAST = 0.6  # least share of words that two names have in common
SPELLED = 0.75  # difflib's least likeness
NEAR = 0.8  # share of the best one's likeness that another must have to be named beside it
BEGINNING = 3  # letters from which on a word may be the beginning of another


def alike(word: str, valid: Iterable[str], elsewhere: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """At most three of `valid`, the likeliest first; leading dashes, underscores and upper case do not count.

    >>> alike("--calib", ["--calibration", "--calibrator", "--batch"])
    ['--calibration', '--calibrator']
    >>> alike("--batch_size", ["--calibration", "--calibrator", "--batch"])
    ['--batch']

    `elsewhere`: one of `valid` -> its names in other tools, all without dashes in front.
    """
    names: dict[str, str] = {}
    for name in valid:
        names.setdefault(_bare(name), name)  # of several spellings the first
    asked = _bare(word)
    if asked in names:
        return [names[asked]]
    known = [name for name, others in (elsewhere or {}).items() if asked in others and name in names]
    begun = [name for name in names if asked and name.startswith(asked)]
    if sure := dict.fromkeys((*known, *begun)):
        return [names[name] for name in sure][:MOST]
    scores = {name: max(_in_common(asked, name), _spelled(asked, name)) for name in names}
    least = NEAR * max(scores.values(), default=0.0)
    close = sorted((name for name in names if scores[name] and scores[name] >= least), key=lambda name: -scores[name])
    return [names[name] for name in close[:MOST]]


def _bare(name: str) -> str:
    return name.lstrip("-").replace("_", "-").lower()


def _in_common(one: str, other: str) -> float:
    """Share of the words of two names that both have, as a beginning or misspelled; 0 below `LEAST`."""
    mine, theirs = one.split("-"), other.split("-")
    shared = sum(
        any(_begins(word, known) or _begins(known, word) or _spelled(word, known) for known in theirs) for word in mine
    )
    share = 2 * shared / (len(mine) + len(theirs))
    return share if share >= LEAST else 0.0


def _begins(word: str, other: str) -> bool:
    return len(word) >= BEGINNING and other.startswith(word)


def _spelled(one: str, other: str) -> float:
    likeness = difflib.SequenceMatcher(None, one, other).ratio()
    return likeness if likeness >= SPELLED else 0.0
