"""Answers as characters of a context: the one to a question, and all to a prompt."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.serving.tokens import Tokens
from qdq.base.activations import softmax
from qdq.base.spans import ANSWER_TOKENS, best_run, is_han, marked, options_of, paired


class Span(NamedTuple):
    """Characters [first, last) of the context, and the probability of this start times that of this end.

    `sum` of their logits is what windows of one context are compared by.
    """

    first: int
    last: int
    score: float
    sum: float = 0.0


def best_span(tokens: Tokens, start: NDArray[Any], end: NDArray[Any]) -> Span:
    """The best span of context tokens; logits [tokens]."""
    context = tokens.text.two or ""
    inside = np.array([side == 1 for side in tokens.encoding.sequence_ids])
    starts, ends = (np.where(inside, values.astype(np.float64), -np.inf) for values in (start, end))
    best, first, last = best_run(starts, ends, ANSWER_TOKENS["cmrc" if is_han(context) else "squad"])
    offsets = tokens.encoding.offsets
    return Span(offsets[first][0], offsets[last][1], float(softmax(starts)[first] * softmax(ends)[last]), best)


def prompted(tokens: Tokens, start: NDArray[Any], end: NDArray[Any]) -> list[dict[str, Any]]:
    """All answers to a prompt, ``{"text", "start", "end", "probability"}`` in order; probabilities [tokens].

    Of a prompt for a choice ("情感倾向[正向,负向]") the one option that is likeliest, without a place.
    """
    prompt, context = tokens.text.one, tokens.text.two or ""
    sides, offsets = tokens.encoding.sequence_ids, tokens.encoding.offsets
    spans = [
        (sides[first], offsets[first][0], offsets[last][1], float(start[first]) * float(end[last]))
        for first, last in paired(marked(start), marked(end))
        if sides[first] is not None and sides[first] == sides[last]
    ]
    if options_of(prompt)[1]:
        chosen = [(share, prompt[first:last]) for side, first, last, share in spans if side == 0]
        return [{"text": name, "probability": round(share, 6)} for share, name in sorted(chosen)[-1:]]
    return [
        {"text": context[first:last], "start": first, "end": last, "probability": round(share, 6)}
        for side, first, last, share in sorted(spans)
        if side == 1
    ]
