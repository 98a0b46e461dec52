"""Metrics as functions of per-sample statistics, so that a paired bootstrap can resample them without scoring again.

Every metric here but mse is in [-1, 1] or [0, 1], and equals what the published scorer prints, divided by 100 where
it prints per cent: GLUE's accuracy, F1 and correlations, scikit-learn's F1 of label sets, seqeval's micro F1, SQuAD's
and CMRC's EM and F1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdq.base.correlation import pearson, spearman

Vector = NDArray[np.float64]
Statistics = NDArray[np.float64]  # [samples, columns]; the meaning of the columns is the metric's own
RESAMPLES = 1000
CONFIDENCE = 0.95
_SEED = 0


@dataclass(frozen=True)
class Metric:
    """`value` of the statistics of any multiset of samples.

    Attributes:
        statistics: [samples, columns].
        of_sums: whether `value` takes column sums [..., columns] (cheap to resample), else the rows themselves.
        value: statistics (or their sums, any leading shape) to the metric.
        error: smaller is better and the unit is the data's own, as of a squared error; else a share, larger is better.
    """

    statistics: Statistics
    value: Callable[[Any], Any]
    of_sums: bool = True
    error: bool = False

    def __call__(self) -> float:
        """The metric of all samples."""
        return float(self.value(self.statistics.sum(axis=0) if self.of_sums else self.statistics))

    def resampled(self, counts: NDArray[np.int64]) -> Vector:
        """The metric of each resample; `counts` [resamples, samples]: how often a sample is in it."""
        if self.of_sums:
            return np.asarray(self.value(counts @ self.statistics), dtype=np.float64)
        rows = (np.repeat(self.statistics, count, axis=0) for count in counts)
        return np.array([float(self.value(chosen)) for chosen in rows])


def ratio_of(over: NDArray[Any], under: NDArray[Any]) -> Metric:
    """Sum of `over` divided by sum of `under`, one number of each per sample; 0 when nothing is below the line."""
    statistics = np.stack([over, under], axis=1).astype(np.float64)
    return Metric(statistics, lambda sums: _ratio(sums[..., 0], sums[..., 1]))


def mean_of(values: NDArray[Any]) -> Metric:
    """The mean of one number per sample: accuracy, exact match, SQuAD's F1."""
    return ratio_of(np.asarray(values), np.ones(len(values)))


def micro_f1(correct: NDArray[Any], predicted: NDArray[Any], gold: NDArray[Any]) -> Metric:
    """2 correct / (predicted + gold) over all samples; 0 when there is nothing to find and nothing found (seqeval)."""
    return ratio_of(2 * correct, np.asarray(predicted, dtype=np.float64) + gold)


def classification(predicted: NDArray[np.int64], gold: NDArray[np.int64], classes: int) -> dict[str, Metric]:
    """accuracy, and F1: of class 1 when there are two (GLUE's MRPC and QQP), else the mean over classes (macro).

    ``accuracy_f1`` is GLUE's mean of both, for two classes. A class that neither occurs nor is predicted is left out
    of the macro mean, as scikit-learn does.
    """
    found = {"accuracy": mean_of(predicted == gold)}
    if classes == 2:
        f1 = micro_f1(((predicted == 1) & (gold == 1)).astype(np.int64), predicted == 1, gold == 1)
        both = np.concatenate([found["accuracy"].statistics, f1.statistics], axis=1)
        mean = Metric(both, lambda s: (_ratio(s[..., 0], s[..., 1]) + _ratio(s[..., 2], s[..., 3])) / 2)
        return {**found, "f1": f1, "accuracy_f1": mean}
    one_hot = np.eye(classes)
    hits = one_hot[gold] * (predicted == gold)[:, None]
    statistics = np.concatenate([hits, one_hot[predicted], one_hot[gold]], axis=1)

    def macro(sums: Any) -> Any:
        correct, of_predicted, of_gold = np.split(sums, 3, axis=-1)
        occurs = of_predicted + of_gold
        scores = np.where(occurs > 0, 2 * correct / np.maximum(occurs, 1), 0.0)
        return scores.sum(axis=-1) / np.maximum((occurs > 0).sum(axis=-1), 1)

    return {**found, "macro_f1": Metric(statistics, macro)}


def multi_label(predicted: NDArray[np.bool_], gold: NDArray[np.bool_]) -> dict[str, Metric]:
    """micro_f1 over all decisions, macro_f1 (mean over classes), exact match of the sets and label accuracy.

    Args are [samples, classes]. scikit-learn's f1_score with ``zero_division=0``: a class that neither occurs nor is
    predicted counts 0 in the macro mean.
    """
    hits = predicted & gold
    statistics = np.concatenate([hits, predicted, gold], axis=1).astype(np.float64)

    def macro(sums: Any) -> Any:
        correct, of_predicted, of_gold = np.split(sums, 3, axis=-1)
        return _ratio(2 * correct, of_predicted + of_gold).mean(axis=-1)

    return {
        "micro_f1": micro_f1(hits.sum(axis=1), predicted.sum(axis=1), gold.sum(axis=1)),
        "macro_f1": Metric(statistics, macro),
        "exact_match": mean_of((predicted == gold).all(axis=1)),
        "label_accuracy": mean_of((predicted == gold).mean(axis=1)),
    }


def binary(scores: Vector, gold: Vector) -> dict[str, Metric]:
    """accuracy and F1 of one probability per sample for gold labels 0 and 1, decided at 0.5; and average precision."""
    decided = scores > 0.5
    right = decided == (gold > 0.5)
    f1 = micro_f1(decided & (gold > 0.5), decided, gold > 0.5)
    rows = np.stack([scores, gold], axis=1)
    return {"accuracy": mean_of(right), "f1": f1, "average_precision": Metric(rows, _average_precision, of_sums=False)}


def _average_precision(rows: Statistics) -> float:
    """scikit-learn's average_precision_score: precision at every threshold, weighted by the recall it adds."""
    order = np.argsort(-rows[:, 0], kind="stable")
    scores, gold = rows[order, 0], rows[order, 1]
    last = np.append(scores[1:] != scores[:-1], True)  # equal scores are one threshold
    found = np.cumsum(gold)[last]
    precision = found / (np.flatnonzero(last) + 1)
    return float((np.diff(found, prepend=0.0) * precision).sum() / max(gold.sum(), 1.0))


def correlation(predicted: Vector, gold: Vector) -> dict[str, Metric]:
    """pearson, spearman (ties get their mean rank), their mean, as GLUE scores STS-B, and mse. Constant values give 0.

    Args are [samples], or [samples, outputs], whose correlations are averaged over the outputs.
    """
    sides = [np.asarray(side, dtype=np.float64).reshape(len(predicted), -1) for side in (predicted, gold)]
    rows, outputs = np.concatenate(sides, axis=1), sides[0].shape[1]

    def over_outputs(one: Callable[[Vector, Vector], float]) -> Callable[[Statistics], float]:
        return lambda r: float(np.mean([one(r[:, n], r[:, outputs + n]) for n in range(outputs)]))

    return {
        "pearson": Metric(rows, over_outputs(pearson), of_sums=False),
        "spearman": Metric(rows, over_outputs(spearman), of_sums=False),
        "pearson_spearman": Metric(rows, over_outputs(_both), of_sums=False),
        "mse": replace(mean_of(np.square(sides[0] - sides[1]).mean(axis=1)), error=True),
    }


def _both(left: Vector, right: Vector) -> float:
    return (pearson(left, right) + spearman(left, right)) / 2


def _ratio(over: Any, under: Any) -> Any:
    return np.where(np.asarray(under) > 0, over / np.maximum(under, 1e-300), 0.0)


@dataclass(frozen=True)
class Interval:
    """A difference between two runners on the same samples, with its 95 % bootstrap interval.

    In points (hundredths); of an error, in the error's own unit.
    """

    difference: float
    low: float
    high: float
    error: bool = False

    def as_json(self) -> dict[str, float]:
        """Plain JSON value."""
        unit = "" if self.error else "_points"
        return {f"difference{unit}": self.difference, f"low{unit}": self.low, f"high{unit}": self.high}


def paired_difference(candidate: Metric, reference: Metric, resamples: int = RESAMPLES) -> Interval:
    """candidate minus reference in points (an error: as it is), with the percentile interval of a paired bootstrap.

    Both metrics must be of the same samples in the same order: each resample draws samples, not scores, so what both
    get right or wrong together cancels (Efron and Tibshirani, An Introduction to the Bootstrap, 1993). Seeded: the same
    statistics give the same interval.
    """
    samples = len(reference.statistics)
    generator = np.random.default_rng(_SEED)
    differences: list[Vector] = []
    step = max(1, 4_000_000 // max(samples, 1))  # resample counts of at most 32 MB at a time
    for start in range(0, resamples, step):
        shares = np.full(samples, 1 / samples)
        counts = generator.multinomial(samples, shares, size=min(step, resamples - start))
        differences.append(candidate.resampled(counts) - reference.resampled(counts))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(differences), [tail, 1 - tail])
    scale = 1 if reference.error else 100
    return Interval(scale * (candidate() - reference()), scale * float(low), scale * float(high), error=reference.error)
