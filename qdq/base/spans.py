"""Answers that are spans of tokens: the run with the best first and last logit, and pairs of start and end marks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

ANSWER_TOKENS = {"squad": 30, "cmrc": 50}  # longest answer; transformers' run_qa and PaddleNLP's compress_qa
LIMIT = 0.5  # probability above which a token is marked as a start or an end
HAN = re.compile(r"[\u4e00-\u9fa5]")
OPTIONS = re.compile(r"^(?P<prefix>.*?)\s*\[(?P<options>[^\[\]]*)\]$", re.DOTALL)
_SEPARATORS = re.compile(r"[,，]")


def is_han(text: str) -> bool:
    """True when more than a fifth of the characters are Chinese: answers are then counted in characters."""
    return 5 * len(HAN.findall(text)) > len(text)


def best_run(start: NDArray[Any], end: NDArray[Any], longest: int) -> tuple[float, int, int]:
    """(sum, first, last) of the best run of at most `longest` tokens; logits [tokens], -inf where none may lie.

    The exact maximum; run_qa looks among the 20 best starts and ends, which is the same but for rare ties.
    (-inf, 0, 0) when there is none.
    """
    best, first, last = float("-inf"), 0, 0
    for length in range(min(longest, len(start))):
        scores = start[: len(start) - length] + end[length:]
        place = int(scores.argmax())
        if scores[place] > best:
            best, first, last = float(scores[place]), place, place + length
    return best, first, last


def paired(starts: Iterable[int], ends: Iterable[int]) -> list[tuple[int, int]]:
    """Starts and ends, each used once, as spans (start, end), both included, by their end.

    Of several starts before an end the last one counts; an end without a start before it is none.
    """
    firsts, lasts = sorted(starts), sorted(ends)
    found: dict[int, int] = {}
    start = end = 0
    while start < len(firsts) and end < len(lasts):
        if firsts[start] > lasts[end]:
            end += 1
            continue
        found[lasts[end]] = firsts[start]
        end += firsts[start] == lasts[end]
        start += 1
    return [(first, last) for last, first in found.items()]


def marked(probabilities: Any, limit: float = LIMIT) -> list[int]:
    """Positions of a row whose probability is above `limit`."""
    import numpy as np  # here: the names of prompts need none, and the command line has them

    return np.flatnonzero(np.asarray(probabilities) > limit).tolist()


def options_of(prompt: str) -> tuple[str, tuple[str, ...]]:
    """(prefix, options) of a prompt for a choice, ``情感倾向[正向,负向]``; the prompt itself and () for any other."""
    found = OPTIONS.match(prompt)
    if found is None:
        return prompt, ()
    options = tuple(option.strip() for option in _SEPARATORS.split(found["options"]) if option.strip())
    return (found["prefix"], options) if options else (prompt, ())
