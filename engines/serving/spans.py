"""The answer to a question as characters of its context."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.serving.tokens import Tokens
from qdq.base.activations import softmax
from qdq.base.spans import ANSWER_TOKENS, best_run, is_han


class Span(NamedTuple):
    """Characters [first, last) of the context, and the probability of this start times that of this end."""

    first: int
    last: int
    score: float


def best_span(tokens: Tokens, start: NDArray[Any], end: NDArray[Any]) -> Span:
    """The best span of context tokens; logits [tokens]."""
    context = tokens.text.two or ""
    inside = np.array([side == 1 for side in tokens.encoding.sequence_ids])
    starts, ends = (np.where(inside, values.astype(np.float64), -np.inf) for values in (start, end))
    _, first, last = best_run(starts, ends, ANSWER_TOKENS["cmrc" if is_han(context) else "squad"])
    offsets = tokens.encoding.offsets
    return Span(offsets[first][0], offsets[last][1], float(softmax(starts)[first] * softmax(ends)[last]))
