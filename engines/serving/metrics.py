"""Counts of a text model beside Triton's own metrics, at its /metrics endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engines.serving.backlog import Busy
from engines.serving.fault import Fault
from engines.serving.tokens import Tokens

FAMILIES = {
    "qdq_texts_total": "texts answered",
    "qdq_tokens_total": "tokens of the texts answered, special ones included",
    "qdq_cut_texts_total": "texts answered with tokens cut off, as their request allowed",
    "qdq_refused_requests_total": "requests refused with INVALID_ARG",
    "qdq_busy_requests_total": "requests refused with UNAVAILABLE, because too many waited",
    "qdq_failed_requests_total": "requests lost with an engine's error",
    "qdq_executions_total": "batches",
}


class Metrics:
    """Counters by name."""

    def __init__(self, triton: Any, model: str) -> None:
        """Register FAMILIES, labelled with the model."""
        family = triton.MetricFamily
        self._families = {
            name: family(name=name, description=text, kind=family.COUNTER) for name, text in FAMILIES.items()
        }
        self._counters = {name: one.Metric(labels={"model": model}) for name, one in self._families.items()}

    def count(self, encoded: Sequence[Sequence[Sequence[Tokens]] | Fault]) -> None:
        """Add one batch of requests, each its samples or the fault that it was refused for."""
        texts = [text for one in encoded if not isinstance(one, Fault) for sample in one for text in sample]
        self._add("qdq_texts_total", len(texts))
        self._add("qdq_tokens_total", sum(map(len, texts)))
        self._add("qdq_cut_texts_total", sum(text.cut > 0 for text in texts))
        self._add(
            "qdq_refused_requests_total", sum(isinstance(one, Fault) and not isinstance(one, Busy) for one in encoded)
        )
        self._add("qdq_busy_requests_total", sum(isinstance(one, Busy) for one in encoded))
        self._add("qdq_executions_total", 1)

    def failed(self, requests: int) -> None:
        """Add requests that an engine's error took."""
        self._add("qdq_failed_requests_total", requests)

    def _add(self, name: str, value: float) -> None:
        if value:
            self._counters[name].increment(value)
