"""Extractive question answering for training: windows with the positions of their answer.

Windows, best spans and scores are those of `qdq.tasks`: the official ones of SQuAD and CMRC 2018.
"""

from collections.abc import Sequence
from typing import Any

from qdq.tasks.extraction import Window
from qdq.text.data import Record


def labelled(window: Window, record: Record, inputs: Sequence[str]) -> dict[str, Any]:
    """The window's `inputs` with start and end positions; (0, 0) where it does not hold the first answer."""
    start = end = 0
    if record.answers and record.answers[0][1] >= 0:
        text, first = record.answers[0]
        last = first + len(text)
        inside = [index for index, place in enumerate(window.offsets) if place and place[1] > first and place[0] < last]
        places = [place for place in window.offsets if place]
        if inside and places[0][0] <= first and places[-1][1] >= last:
            start, end = inside[0], inside[-1]
    return {**{name: window.tokens[name] for name in inputs}, "start_positions": start, "end_positions": end}
