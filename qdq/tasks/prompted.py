"""UIE's task: spans of every prompt, scored by exact matching and, where asked, class by class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from qdq.tasks.metrics import Metric, micro_f1, ratio_of
from qdq.tasks.problems import Answer, Problem, RowOutputs, identity
from qdq.tasks.spans import Pair, Part, marked, paired
from qdq.text.data import Record

Found = tuple[frozenset[Pair], list[tuple[int, int, float]]]  # spans of a row in tokens, and in characters


class PromptedSpans(Problem):
    """Any number of spans for each prompt, over the parts of its content; SpanEvaluator's micro F1."""

    decides, token_level = "f1", ("start_prob", "end_prob")

    def __init__(self, records: Sequence[Record], parts: Sequence[Part], reason: str = "") -> None:
        super().__init__(records, reason)
        self._parts = parts

    def keep(self, row: int, outputs: RowOutputs) -> Found:
        """The spans that the row's probabilities mark."""
        start, end = (outputs[name] for name in self.token_level)
        return frozenset(paired(marked(start), marked(end))), self._parts[row].spans(start, end)

    def metrics(self, kept: Sequence[Found]) -> dict[str, Metric]:
        """f1, precision and recall over all spans; a sample of the bootstrap is a prompt with all its parts."""
        return self._scores(kept, range(len(self._records)))

    def class_metrics(self, kept: Sequence[Found], kind: Callable[[Record], str]) -> dict[str, dict[str, Metric]]:
        """The same for each class of prompts, which `kind` names; prompts without an answer are left out."""
        members: dict[str, list[int]] = defaultdict(list)
        for number, record in enumerate(self._records):
            if record.spans:
                members[kind(record)].append(number)
        return {name: self._scores(kept, numbers) for name, numbers in sorted(members.items())}

    def _scores(self, kept: Sequence[Found], chosen: Sequence[int]) -> dict[str, Metric]:
        counts = np.zeros((len(self._records), 3), dtype=np.int64)  # correct, found, gold spans of each prompt
        for part, (spans, _) in zip(self._parts, kept, strict=True):
            gold = frozenset(paired(part.starts, part.ends))
            counts[part.record] += len(spans & gold), len(spans), len(gold)
        correct, found, gold_spans = counts[list(chosen)].T
        return {
            "f1": micro_f1(correct, found, gold_spans),
            "precision": ratio_of(correct, found),
            "recall": ratio_of(correct, gold_spans),
        }

    def answers(self, kept: Sequence[Found]) -> list[Answer]:
        """Each prompt with its spans in characters; those of an option have negative ones, as the data."""
        spans: dict[int, dict[Pair, float]] = defaultdict(dict)
        for part, (_, found) in zip(self._parts, kept, strict=True):
            for start, end, share in found:
                known = spans[part.record].get((start, end), 0.0)  # an option is in every part of a content
                spans[part.record][start, end] = max(known, share)
        return [
            {**who, "prompt": record.text, "spans": [_said(record, *span, share) for span, share in spans[n].items()]}
            for n, (who, record) in enumerate(zip(identity(self._records), self._records, strict=True))
        ]


def _said(record: Record, start: int, end: int, share: float) -> Answer:
    behind = len(record.text) + 1  # negative characters are counted from one behind the prompt
    text = str(record.pair)[start:end] if start >= 0 else record.text[start + behind : end + behind]
    return {"text": text, "start": start, "end": end, "probability": round(share, 6)}
