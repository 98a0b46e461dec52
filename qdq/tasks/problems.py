"""Answers and metrics from a model's outputs: classes, scores, similarities (the rest: `tagging`, `extraction`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdq.load.kinds import SENTENCE_EMBEDDING
from qdq.tasks.metrics import Metric, classification, correlation
from qdq.text.data import Record

RowOutputs = dict[str, NDArray[np.float64]]
Answer = dict[str, Any]  # one sample's prediction, as the predictions file has it
STATES = "last_hidden_state"


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
            best = int(logits.argmax())
            shares = np.exp(logits - logits.max())
            name = self._names[best] if self._names else best
            found.append({**who, "label": name, "probability": round(float(shares[best] / shares.sum()), 6)})
        return found


class Regression(Problem):
    """One number per text (pair), such as STS-B's similarity."""

    decides, answer = "pearson", "score"

    def __init__(self, records: Sequence[Record], gold: Sequence[float] | None, reason: str = "") -> None:
        super().__init__(records, reason)
        self._gold = np.array(gold or [])

    def keep(self, row: int, outputs: RowOutputs) -> Any:
        """The single logit."""
        return float(outputs["logits"].reshape(-1)[0])

    def values(self, kept: Sequence[Any]) -> NDArray[np.float64]:
        """One number per sample."""
        return np.array(kept, dtype=np.float64)

    def metrics(self, kept: Sequence[Any]) -> dict[str, Metric]:
        """See `metrics.correlation`."""
        return correlation(self.values(kept), self._gold)

    def answers(self, kept: Sequence[Any]) -> list[Answer]:
        """The number, as a score."""
        values = self.values(kept).tolist()
        return [{**who, self.answer: value} for who, value in zip(identity(self._records), values, strict=True)]


class Similarity(Regression):
    """Cosine of the embeddings of a text and its pair; rows 2n and 2n + 1 are the two sides of sample n.

    Token states of a model without a pooling head are averaged over the tokens that are not padding.
    """

    decides, answer = "spearman", "cosine"
    token_level = (STATES,)

    def keep(self, row: int, outputs: RowOutputs) -> NDArray[np.float64]:
        """The embedding, of length 1."""
        vector = outputs[SENTENCE_EMBEDDING] if SENTENCE_EMBEDDING in outputs else outputs[STATES].mean(axis=0)
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    def values(self, kept: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """The cosine of every sample."""
        sides = np.stack(kept)
        cosines: NDArray[np.float64] = (sides[0::2] * sides[1::2]).sum(axis=1)
        return cosines


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
