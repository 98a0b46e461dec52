"""Extractive question answering by an engine: transformers 5 has no pipeline for it any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from qdq.base.activations import softmax
from qdq.base.spans import ANSWER_TOKENS, is_han
from qdq.errors import ConfigError

if TYPE_CHECKING:
    from qdq.api.token_engine import TokenEngine

BATCH = 8  # windows of a long context that run together


class Answer(NamedTuple):
    """A span of the context: its text, its characters [start, end), and its probability within its window."""

    answer: str
    start: int
    end: int
    score: float


def answer(engine: TokenEngine, question: str, context: str, longest: int | None) -> Answer:
    """The best span over all windows of the context. Raises ConfigError for another task, DataError without text."""
    from qdq.tasks.extraction import best_span, windows
    from qdq.text.data import Record
    from qdq.text.encode import has_types, pad
    from qdq.text.encode import longest as longest_row

    if engine.task != "question-answering":
        raise ConfigError(f"{engine!r}: answers no questions; compile a question-answering model for that")
    # Windows of the context, in batches.
    tokenizer, most = engine.tokenizer, longest or ANSWER_TOKENS["cmrc" if is_han(context) else "squad"]
    typed = has_types(tokenizer, engine.inputs)
    parts = windows(tokenizer, [Record(question, context)], int(tokenizer.model_max_length), None, typed)
    best = Answer("", 0, 0, 0.0)
    highest = -np.inf
    for first in range(0, len(parts), BATCH):
        chunk = parts[first : first + BATCH]
        rows = [part.tokens for part in chunk]
        outputs = engine.run(pad(tokenizer, rows, engine.inputs, longest_row(rows)))
        # The best span of each window; the one with the largest sum of logits counts.
        for index, part in enumerate(chunk):
            size = len(part.offsets)
            logits = {name: outputs[name][index, :size].astype(np.float64) for name in ("start_logits", "end_logits")}
            span = best_span(part, logits, most)
            if span.score > highest:
                share = np.exp(span.score - sum(_log_sum(values) for values in logits.values()))
                best = Answer(context[span.first : span.last], span.first, span.last, float(share))
                highest = span.score
    return best


def _log_sum(logits: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """log(sum(exp(logits)))."""
    return float(logits.max() - np.log(softmax(logits).max()))
