"""The run of tokens whose first and last logits have the largest sum: how an extractive answer is found."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

ANSWER_TOKENS = {"squad": 30, "cmrc": 50}  # longest answer; transformers' run_qa and PaddleNLP's compress_qa
HAN = re.compile(r"[\u4e00-\u9fa5]")


def is_han(text: str) -> bool:
    """True when more than a fifth of the characters are Chinese: answers are then counted in characters."""
    return 5 * len(HAN.findall(text)) > len(text)


def best_run(start: NDArray[Any], end: NDArray[Any], longest: int) -> tuple[float, int, int]:
    """(sum, first, last) of the best run of at most `longest` tokens; logits [tokens], -inf where none may lie.

    The exact maximum; run_qa looks among the 20 best starts and ends, which is the same but for rare ties.
    (-inf, 0, 0) when there is none.
    """
    best, first, last = -np.inf, 0, 0
    for length in range(min(longest, len(start))):
        scores = start[: len(start) - length] + end[length:]
        place = int(scores.argmax())
        if scores[place] > best:
            best, first, last = float(scores[place]), place, place + length
    return best, first, last
