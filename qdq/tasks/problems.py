"""Answers and metrics from a model's outputs: classes, label sets, scores (the rest: `tagging`, `extraction`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdq.loading.kinds import SENTENCE_EMBEDDING
from qdq.tasks.heads import Head
from qdq.tasks.metrics import Metric, binary, classification, correlation, multi_label
from qdq.text.data import Record

RowOutputs = dict[str, NDArray[np.float64]]
Answer = dict[str, Any]  # one sample's prediction, as the predictions file has it
STATES = "last_hidden_state"
CLASSES, SCORES = Head("classes"), Head("scores")


class Problem(ABC):
    """Reads the outputs of one data set's rows.

    Attributes:
        decides: the metric that decides when one number must, unless the user names another.
        token_level: outputs that have one value per token.
        reason: of there being no metric, "" when there is one.
        main: the metric that decides here; "" when there is no gold to score with.
    """

    decides: str
    token_level: tuple[str, ...] = ()

    def __init__(self, records: Sequence[Record], reason: str = "") -> None:
        self._records, self.reason = records, reason
        self.main = "" if reason else self.decides

    @property
    def samples(self) -> int:
        """Number of texts, sentences or questions."""
        return len(self._records)

    @property
    def records(self) -> Sequence[Record]:
        """The text of every sample, in the order of the answers."""
        return self._records

    def right(self, sample: int) -> str | None:
        """The right answer in the words of the answers; None where it has no other words than the record's."""
        return None

    @abstractmethod
    def keep(self, row: int, outputs: RowOutputs) -> Any:
        """Return the part of a row's outputs that the answer needs."""

    @abstractmethod
    def metrics(self, kept: Sequence[Any]) -> dict[str, Metric]:
        """Metrics over all rows; asked for only where there is gold."""

    @abstractmethod
    def answers(self, kept: Sequence[Any]) -> list[Answer]:
        """One prediction per sample."""


def identity(records: Sequence[Record]) -> list[Answer]:
    """The id of every answer: the row's own, else its number from 0."""
    return [{"id": record.id if record.id is not None else number} for number, record in enumerate(records)]


class Classification(Problem):
    """One class per text (pair), sentence pair order, or choice."""

    decides = "accuracy"

    def __init__(
        self, records: Sequence[Record], names: Sequence[str], gold: Sequence[int] | None, reason: str = ""
    ) -> None:
        super().__init__(records, reason)
        self._names, self._gold = names, np.array(gold or [], dtype=np.int64)

    def right(self, sample: int) -> str | None:
        """The class by its name, where the data have its number."""
        return str(self._names[self._gold[sample]]) if self._names and sample < len(self._gold) else None

    def keep(self, row: int, outputs: RowOutputs) -> NDArray[np.float64]:
        """The logits."""
        return outputs["logits"]

    def metrics(self, kept: Sequence[NDArray[np.float64]]) -> dict[str, Metric]:
        """See `metrics.classification`."""
        logits = np.stack(kept)
        return classification(logits.argmax(axis=1), self._gold, logits.shape[1])

    def answers(self, kept: Sequence[NDArray[np.float64]]) -> list[Answer]:
        """Class name (or number) and its softmax probability."""
        found = []
        for who, logits in zip(identity(self._records), kept, strict=True):
            best, shares = int(logits.argmax()), CLASSES.read(logits)
            name = self._names[best] if self._names else best
            found.append({**who, "label": name, "probability": round(float(shares[best]), 6)})
        return found


class MultiLabel(Problem):
    """Any number of classes per text: those whose sigmoid is above the head's threshold."""

    decides = "micro_f1"

    def __init__(
        self,
        records: Sequence[Record],
        names: Sequence[str],
        gold: NDArray[np.bool_] | None,
        reason: str = "",
        head: Head | None = None,
    ) -> None:
        super().__init__(records, reason)
        self._names, self._gold, self._head = names, gold, head or Head("multi-label")

    def keep(self, row: int, outputs: RowOutputs) -> NDArray[np.float64]:
        """The probability of every class."""
        return self._head.read(outputs["logits"])

    def metrics(self, kept: Sequence[NDArray[np.float64]]) -> dict[str, Metric]:
        """See `metrics.multi_label`."""
        assert self._gold is not None  # `main` is "" without gold, and nobody asks then
        return multi_label(self._head.counts(np.stack(kept)), self._gold)

    def answers(self, kept: Sequence[NDArray[np.float64]]) -> list[Answer]:
        """Names of the classes of every text, and the probability of each class."""
        return [
            {**who, **label_set(probabilities, self._names, self._head)}
            for who, probabilities in zip(identity(self._records), kept, strict=True)
        ]


def label_set(probabilities: NDArray[np.float64], names: Sequence[str], head: Head) -> Answer:
    """The part of a multi-label prediction that says what was found: ``labels`` and ``probabilities`` by name."""
    counted = zip(names, head.counts(probabilities), strict=True)
    known = dict(zip(names, (round(float(value), 6) for value in probabilities), strict=True))
    return {"labels": [name for name, counts in counted if counts], "probabilities": known}


class Regression(Problem):
    """Numbers for each text (pair), such as STS-B's similarity or a reranker's score, behind the head's activation."""

    decides, answer = "pearson", "score"

    def __init__(
        self,
        records: Sequence[Record],
        gold: NDArray[np.float64] | None,
        reason: str = "",
        head: Head = SCORES,
    ) -> None:
        super().__init__(records, reason)
        self._gold, self._head = gold, head

    def keep(self, row: int, outputs: RowOutputs) -> Any:
        """The scores, [outputs]."""
        return self._head.read(outputs["logits"].reshape(-1))

    def values(self, kept: Sequence[Any]) -> NDArray[np.float64]:
        """Numbers of every sample, [samples, outputs]."""
        return np.stack(kept)

    def metrics(self, kept: Sequence[Any]) -> dict[str, Metric]:
        """See `metrics.correlation`; where scores are probabilities and gold is 0 or 1, also `metrics.binary`."""
        assert self._gold is not None  # `main` is "" without gold, and nobody asks then
        values = self.values(kept)
        found = correlation(values, self._gold)
        single = self._gold.shape[1] == 1 and bool(np.isin(self._gold, (0, 1)).all())
        if single and self._head.activation == "sigmoid":
            found |= binary(values[:, 0], self._gold[:, 0])
        return found

    def answers(self, kept: Sequence[Any]) -> list[Answer]:
        """The number, as a score; a list for a model that returns several."""
        values = self.values(kept).tolist()
        return [
            {**who, self.answer: row[0] if len(row) == 1 else row}
            for who, row in zip(identity(self._records), values, strict=True)
        ]


class Similarity(Regression):
    """Similarity of the embeddings of a text and its pair; rows 2n and 2n + 1 are the two sides of sample n.

    The cosine, or what the model's files ask for; of a distance the negative, so that more is closer. Token states of a
    model without a pooling head are averaged over the tokens that are not padding.
    """

    decides = "spearman"
    token_level = (STATES,)

    def __init__(
        self, records: Sequence[Record], gold: NDArray[np.float64] | None, reason: str = "", similarity: str = "cosine"
    ) -> None:
        super().__init__(records, gold, reason)
        self.answer = similarity

    def keep(self, row: int, outputs: RowOutputs) -> NDArray[np.float64]:
        """The embedding; of length 1 for the cosine."""
        vector = outputs[SENTENCE_EMBEDDING] if SENTENCE_EMBEDDING in outputs else outputs[STATES].mean(axis=0)
        return vector / max(float(np.linalg.norm(vector)), 1e-12) if self.answer == "cosine" else vector

    def values(self, kept: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """The similarity of every sample, [samples, 1]."""
        sides = np.stack(kept)
        one, other = sides[0::2], sides[1::2]
        if self.answer in ("cosine", "dot"):
            found: NDArray[np.float64] = (one * other).sum(axis=1, keepdims=True)
        else:
            found = -np.linalg.norm(one - other, ord=1 if self.answer == "manhattan" else 2, axis=1, keepdims=True)
        return found


class Unscored(Problem):
    """A task without a metric, such as fill-mask: its outputs are compared with FP32's only."""

    decides = ""

    def keep(self, row: int, outputs: RowOutputs) -> None:
        """Nothing."""

    def metrics(self, kept: Sequence[None]) -> dict[str, Metric]:
        """None."""
        return {}

    def answers(self, kept: Sequence[None]) -> list[Answer]:
        """None."""
        return []
