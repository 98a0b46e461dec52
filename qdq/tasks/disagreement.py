"""Texts on which an engine answers otherwise than the FP32 model, or whose embedding it moves most; for people."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdq.base.types import Feeds, Outputs
from qdq.loading.kinds import SENTENCE_EMBEDDING
from qdq.tasks.evaluation import Evaluation, Runner, Scores
from qdq.tasks.problems import Answer
from qdq.text.data import Record

SHOWN = 40  # texts that are kept
LONGEST = 1000  # characters kept of each
KINDS = {"label", "labels", "answer", "tags", "spans"}  # keys of an answer that is right or wrong; others are numbers
NOTHING = "nothing"


class KeptEmbeddings:
    """A runner that also keeps the sentence embeddings it hands through."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._batches: list[NDArray[Any]] = []

    def __call__(self, feeds: Feeds) -> Outputs:
        """Run the feeds."""
        outputs = self._runner(feeds)
        if SENTENCE_EMBEDDING in outputs:
            self._batches.append(np.asarray(outputs[SENTENCE_EMBEDDING], dtype=np.float64))
        return outputs

    def embeddings(self) -> NDArray[np.float64] | None:
        """All of them [N, H] in the order of the feeds; None of a model without any."""
        return np.concatenate(self._batches) if self._batches else None


def disagreements(evaluation: Evaluation, floating: Scores, engine: Scores) -> dict[str, Any]:
    """Samples whose answers differ: ``count`` of ``of``, and the first of them under ``texts``.

    Each has the text, its label where there is one, and both answers. A task whose answers are numbers, or that gives
    none, has no such texts: ``of`` is then 0.
    """
    problem = evaluation.problem
    pairs = zip(range(len(problem.records)), floating.answers, engine.answers, strict=False)
    said = [(place, *_said(one, two)) for place, one, two in pairs if KINDS & one.keys()]
    different = [(place, one, two) for place, one, two in said if one != two]
    texts = [
        {**_text(problem.records[place], problem.right(place)), "fp32": one, "int8": two}
        for place, one, two in different[:SHOWN]
    ]
    return {"count": len(different), "of": len(said), "texts": texts}


def moved(evaluation: Evaluation, floating: KeptEmbeddings, engine: KeptEmbeddings) -> list[dict[str, Any]]:
    """The texts whose embedding the engine moves most: text and cosine, the lowest first; [] for another task."""
    one, two = floating.embeddings(), engine.embeddings()
    if one is None or two is None:
        return []
    cosines = (one * two).sum(1) / np.maximum(np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1), 1e-30)
    rows = [row for _, batch in evaluation.batches for row in batch]
    per_record = len(rows) // max(len(evaluation.problem.records), 1)
    lowest = np.argsort(cosines, kind="stable")[: SHOWN // 4]
    found = []
    for place in lowest.tolist():
        record, side = divmod(rows[place], max(per_record, 1))
        text = evaluation.problem.records[record]
        said = text.pair if side and text.pair is not None else text.text
        found.append({"text": said[:LONGEST], "cosine": float(cosines[place])})
    return found


def _said(one: Answer, two: Answer) -> tuple[str, str]:
    """Both answers in words; of a tagged sentence only the words whose tags differ."""
    if "tags" not in one:
        return _words(one), _words(two)
    tagged = zip(one["words"], one["tags"], two["tags"], strict=True)
    different = [(word, mine, other) for word, mine, other in tagged if mine != other]
    return (
        ", ".join(f"{word} {mine}" for word, mine, _ in different),
        ", ".join(f"{word} {other}" for word, _, other in different),
    )


def _words(answer: Answer) -> str:
    if "spans" in answer:
        return ", ".join(sorted(str(span.get("text", span)) for span in answer["spans"])) or NOTHING
    if "labels" in answer:
        return ", ".join(map(str, answer["labels"])) or NOTHING
    return str(answer.get("label", answer.get("answer"))) or NOTHING


def _text(record: Record, right: str | None) -> dict[str, Any]:
    label = record.label if right is None else right
    found = {"text": record.text[:LONGEST], "pair": record.pair and record.pair[:LONGEST], "label": label}
    return {name: value for name, value in found.items() if value is not None}
