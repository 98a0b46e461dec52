"""A data set ready for a model, and the metrics of any runner on it; `loading` makes one from a file.

::

    evaluation = load_evaluation("dev.tsv", loaded)           # a LoadedModel names task, tokenizer, inputs and classes
    scores = evaluation.score(TorchRunner(loaded.module()))   # any callable from feeds to named arrays
    scores.value, scores.values                               # 0.8137, {"accuracy": 0.8137, "f1": 0.8729, ...}
    scores.difference(other)["accuracy"]                      # points, with a 95 % interval, samples paired
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qdq.base.types import Feeds, Outputs, Progress
from qdq.errors import ConfigError, DataError, ParityError
from qdq.tasks.metrics import Interval, Metric, paired_difference
from qdq.tasks.problems import Answer, Problem, RowOutputs
from qdq.tasks.prompted import PromptedSpans
from qdq.text.data import Record
from qdq.text.encode import Feed

Runner = Callable[[Feeds], Outputs]  # a torch model or any engine


@dataclass(frozen=True)
class Scores:
    """Metrics of one runner on one data set.

    Attributes:
        metrics: by name, with the statistics a paired bootstrap needs; empty without labels.
        main: name of the metric that decides.
        samples: texts, sentences or questions.
        answers: one prediction per sample.
    """

    metrics: Mapping[str, Metric]
    main: str
    samples: int
    answers: tuple[Answer, ...]

    @property
    def values(self) -> dict[str, float]:
        """Metrics as numbers in [0, 1] (correlations in [-1, 1], mse in the data's unit)."""
        return {name: metric() for name, metric in self.metrics.items()}

    @property
    def value(self) -> float:
        """The metric that decides. Raises ConfigError when the data have no labels."""
        if not self.metrics:
            raise ConfigError("the data have no labels, so there is no metric to decide by; give labelled data")
        return self.metrics[self.main]()

    def difference(self, reference: Scores) -> dict[str, Interval]:
        """This minus `reference` per metric, with a 95 % bootstrap interval over paired samples (see `Interval`)."""
        pairs = ((name, metric, reference.metrics.get(name)) for name, metric in self.metrics.items())
        return {name: paired_difference(metric, other) for name, metric, other in pairs if other is not None}


@dataclass(frozen=True)
class Evaluation:
    """A data set ready for a model: feeds, and how to read the outputs for them.

    Attributes:
        task: task name.
        source: the sentence that names the data.
        samples: texts, sentences or questions.
        batches: feeds, padded to their longest row, with the rows in each; a sample may have several rows.
        notes: counts of texts that were cut off or left out, and what else a reader of the scores has to know.
        compared_as: the task as `engines.compare` knows it, which tells how a classifier's logits are read.
        cuts: of a multi-label model the logits above which a class counts, one for all or one each; else ().
    """

    task: str
    source: str
    samples: int
    batches: tuple[tuple[Feed, tuple[int, ...]], ...]
    problem: Problem
    notes: tuple[str, ...] = ()
    compared_as: str = ""
    cuts: tuple[float, ...] = ()

    @property
    def feeds(self) -> tuple[Feed, ...]:
        """int64 arrays by input name, one mapping per batch."""
        return tuple(feed for feed, _ in self.batches)

    @property
    def labelled(self) -> bool:
        """True when there is a metric; otherwise `reason` says why not."""
        return bool(self.problem.main)

    @property
    def reason(self) -> str:
        """The reason there is no metric, "" when there is one."""
        return self.problem.reason

    def score(self, runner: Runner, progress: Progress | None = None) -> Scores:
        """Run every feed through `runner` and score. Raises ParityError for NaN or missing outputs."""
        return self.read_all(runner, progress).scores()

    def read_all(self, runner: Runner, progress: Progress | None = None) -> Reader:
        """Run every feed through `runner` and return the reader that has kept its answers. Raises ParityError."""
        reader = self.reader(runner)
        for done, feed in enumerate(self.feeds, start=1):
            reader(feed)
            if progress is not None:
                progress(done, len(self.feeds))
        return reader

    def reader(self, runner: Runner) -> Reader:
        """`runner` that also keeps its answers; call it with every feed, in order, then ask for `scores`."""
        return Reader(self, runner)


class Reader:
    """A runner that hands outputs through and keeps what scoring needs of them."""

    def __init__(self, evaluation: Evaluation, runner: Runner) -> None:
        self._evaluation, self._runner = evaluation, runner
        self._kept: dict[int, Any] = {}
        self._done = 0

    def __call__(self, feeds: Feeds) -> Outputs:
        """Run one feed; the n-th call must be the n-th feed."""
        outputs = self._runner(feeds)
        problem = self._evaluation.problem
        rows = split(outputs, feeds, problem.token_level, f"batch {self._done}")
        for row, values in zip(self._evaluation.batches[self._done][1], rows, strict=True):
            self._kept[row] = problem.keep(row, values)
        self._done += 1
        return outputs

    def classes(self, kind: Callable[[Record], str]) -> dict[str, dict[str, float]]:
        """Metrics for each class of prompts with answers, which `kind` names; {} for a task without prompts.

        Raises DataError before all feeds were run.
        """
        problem = self._evaluation.problem
        if not isinstance(problem, PromptedSpans):
            return {}
        found = problem.class_metrics(self._all(), kind)
        return {name: {key: metric() for key, metric in metrics.items()} for name, metrics in found.items()}

    def scores(self) -> Scores:
        """Metrics of everything that was run. Raises DataError before all feeds were."""
        evaluation, kept = self._evaluation, self._all()
        problem = evaluation.problem
        metrics = problem.metrics(kept) if problem.main else {}
        return Scores(metrics, problem.main, evaluation.samples, tuple(problem.answers(kept)))

    def _all(self) -> list[Any]:
        evaluation = self._evaluation
        if self._done != len(evaluation.feeds):
            raise DataError(
                f"{evaluation.source}: {self._done} of {len(evaluation.feeds)} batches were run; run them all"
            )
        return [self._kept[row] for row in range(len(self._kept))]


def split(outputs: Outputs, feed: Feeds, token_level: Sequence[str], where: str) -> list[RowOutputs]:
    """Outputs of a batch, row by row in float64; those named `token_level` without padding.

    Raises ParityError naming the output that holds NaN or infinity, or does not have a row per text.
    """
    mask = feed["attention_mask"].astype(bool)
    for name, array in outputs.items():
        if array.shape[:1] != mask.shape[:1]:
            raise ParityError(
                f"{where}: output '{name}' has shape {list(array.shape)} for {len(mask)} texts; export again"
            )
        if not np.isfinite(array).all():
            raise ParityError(
                f"{where}: output '{name}' holds NaN or infinity, so nothing can be scored; look for a scale of 0 or "
                "an overflow in FP16, then calibrate and build again"
            )
    return [
        {
            name: np.asarray(array[row][mask[row]] if name in token_level else array[row], dtype=np.float64)
            for name, array in outputs.items()
        }
        for row in range(len(mask))
    ]
