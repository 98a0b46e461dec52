"""Extractive question answering on windows: features for training, answers out of logits, SQuAD's scores.

Scores follow the official evaluation of SQuAD v1.1 (normalized words) and, for Chinese contexts, CMRC 2018's practice
of counting characters.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CJK = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True)
class Window:
    """One window of a context: model inputs, the question's number, and (first, last) character per context token."""

    inputs: Mapping[str, list[int]]
    question: int
    offsets: Sequence[tuple[int, int] | None]


def windows(tokenizer: Any, rows: Sequence[Mapping[str, Any]], longest: int, stride: int) -> list[Window]:
    """Every window of every row's context, `stride` tokens of overlap."""
    found = []
    for number, row in enumerate(rows):
        tokens = tokenizer(
            row["question"].strip(),
            row["context"],
            truncation="only_second",
            max_length=longest,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        names = [name for name in tokenizer.model_input_names if name in tokens]
        for part in range(len(tokens["input_ids"])):
            parts = tokens.sequence_ids(part)
            places = zip(parts, tokens["offset_mapping"][part], strict=True)
            offsets = [tuple(place) if side == 1 else None for side, place in places]
            found.append(Window({name: tokens[name][part] for name in names}, number, offsets))
    return found


def labelled(window: Window, row: Mapping[str, Any]) -> dict[str, Any]:
    """The window with start and end positions; (0, 0) where it does not hold the answer."""
    answers = row["answers"]
    start = end = 0
    if answers["text"] and answers["answer_start"][0] >= 0:
        first = answers["answer_start"][0]
        last = first + len(answers["text"][0])
        inside = [index for index, place in enumerate(window.offsets) if place and place[1] > first and place[0] < last]
        places = [place for place in window.offsets if place]
        if inside and places[0][0] <= first and places[-1][1] >= last:
            start, end = inside[0], inside[-1]
    return {**window.inputs, "start_positions": start, "end_positions": end}


def best_answer(
    start: NDArray[Any], end: NDArray[Any], window: Window, context: str, longest: int
) -> tuple[float, str, tuple[int, int]]:
    """(score, text, character span) of the window's best span of at most `longest` tokens; score is start + end."""
    usable = np.array([place is not None for place in window.offsets])
    size = len(usable)
    scores = start[:size, None] + end[None, :size]
    allowed = np.triu(np.ones((size, size), bool)) & ~np.triu(np.ones((size, size), bool), longest)
    scores = np.where(allowed & usable[:, None] & usable[None, :], scores, -np.inf)
    low, high = divmod(int(scores.argmax()), size)
    first, last = window.offsets[low], window.offsets[high]
    if first is None or last is None:
        return float("-inf"), "", (0, 0)
    return float(scores[low, high]), context[first[0] : last[1]], (first[0], last[1])


def scores(answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Exact match and F1 in per cent, the best over each question's answers."""
    exact = overlap = 0.0
    for answer, row in zip(answers, rows, strict=True):
        gold = row["answers"]["text"] or [""]
        exact += max(float(_words(answer) == _words(text)) for text in gold)
        overlap += max(_f1(_words(answer), _words(text)) for text in gold)
    return {"em": 100 * exact / len(rows), "f1": 100 * overlap / len(rows)}


def _words(text: str) -> list[str]:
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    if _CJK.search(plain):
        return [character for character in plain if not character.isspace() and character not in "，。、；：？！《》“”"]
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _f1(answer: list[str], gold: list[str]) -> float:
    common = sum((Counter(answer) & Counter(gold)).values())
    if not answer or not gold:
        return float(answer == gold)
    return 2 * common / (len(answer) + len(gold))
