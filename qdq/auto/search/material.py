"""Text of a search in the forms it is used in: labelled rows to train on, rows that choose, and rows that judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qdq.base.artifacts import atomic_path
from qdq.base.choices import INFORMATION_EXTRACTION
from qdq.compress.datasets import IGNORED_LABEL
from qdq.errors import ConfigError, DataError
from qdq.loading.runner import TorchRunner
from qdq.tasks.extraction import training_row, windows
from qdq.tasks.gold import gold_of, tags_of
from qdq.tasks.loading import EvaluationSettings, evaluation_of
from qdq.tasks.tagging import tagged_rows
from qdq.text.data import Record, read_records
from qdq.text.encode import has_types, tokenize

if TYPE_CHECKING:
    from torch import nn

    from engines.types import Runner
    from qdq.auto.search.settings import SearchSettings
    from qdq.base.types import Feeds, Outputs
    from qdq.loading.model import LoadedModel
    from qdq.tasks.evaluation import Evaluation, Scores

SIDES = ("choosing", "judging")
SCORING_BATCH = 32
FEWEST = 20  # rows of a file that chooses or judges; without a test file ten choose, ten judge
OVERLAP = 64  # tokens that neighbouring windows of a question's context share
Sample = dict[str, Any]


@dataclass(frozen=True)
class Judges:
    """Labelled rows: those that choose among candidates and steps, and those that nothing is chosen by."""

    choosing: Evaluation
    judging: Evaluation


def read_judges(settings: SearchSettings, loaded: LoadedModel) -> Judges:
    """The development rows choose and those of `test` judge; without these, odd rows choose and even ones judge.

    Raises DataError for rows without labels, and for few of them.
    """
    places = (settings.dev, settings.test or settings.dev)
    rows = [read_records(settings.source(place))[0] for place in dict.fromkeys(places)]
    for place, records in zip(places, rows, strict=False):
        if len(records) < FEWEST:
            raise DataError(f"{place}: has {len(records)} rows to choose and judge by; give at least {FEWEST}")
    parts = rows if settings.test else [rows[0][0::2], rows[0][1::2]]
    how = EvaluationSettings(settings.sequence, SCORING_BATCH, required=True)
    sides = []
    for place, records in zip(places, parts, strict=True):
        side = evaluation_of(sorted_rows(records), loaded, how, place)
        if not side.labelled:
            raise DataError(f"{place}: {side.reason}; a search chooses by a metric, give labelled rows")
        sides.append(side)
    return Judges(*sides)


def sorted_rows(records: Sequence[Record]) -> list[Record]:
    """The records by their length in characters, so that batches of them hold little padding."""
    return sorted(records, key=lambda record: len(record.text) + len(record.pair or ""))


def metric_of(evaluation: Evaluation, loaded: LoadedModel) -> Callable[[nn.Module], float]:
    """The metric of a torch model on `evaluation`: that of the same task with other weights or widths."""

    def metric(model: Any) -> float:
        return evaluation.score(TorchRunner(replace(loaded, model=model).module())).value

    return metric


class Kept:
    """A runner that keeps what it returned."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self._outputs = runner, list[Any]()

    def __call__(self, feeds: Feeds) -> Outputs:
        """Run, and keep the outputs."""
        self._outputs.append(self._runner(feeds))
        return dict(self._outputs[-1])

    def arrays(self) -> Iterator[tuple[int, str, Any]]:
        """(call, output's name, array) of everything that was returned."""
        return ((index, name, array) for index, found in enumerate(self._outputs) for name, array in found.items())


def keep_outputs(path: Path, kept: Mapping[str, Kept]) -> None:
    """Write the outputs of each side's runner to an .npz file."""
    arrays = {f"{side}/{index}/{name}": array for side, one in kept.items() for index, name, array in one.arrays()}
    with atomic_path(path) as partial:
        np.savez(partial, **arrays)


def reference_scores(path: Path, judges: Judges) -> dict[str, Scores]:
    """Scores of both sides from the outputs that `keep_outputs` wrote."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}

    def replayed(side: str, evaluation: Evaluation) -> Scores:
        found: list[dict[str, Any]] = [{} for _ in evaluation.feeds]
        for key, array in arrays.items():
            owner, index, name = key.split("/", 2)
            if owner == side:
                found[int(index)][name] = array
        turn = iter(found)
        return evaluation.score(lambda feeds: next(turn))

    return {side: replayed(side, getattr(judges, side)) for side in SIDES}


def training_samples(settings: SearchSettings, loaded: LoadedModel) -> list[Sample]:
    """Token ids and labels of every training row. Raises DataError for rows without them, ConfigError for a task."""
    name = loaded.task.name
    if name not in _ENCODERS:
        raise ConfigError(f"{loaded.name}: a search trains {', '.join(_ENCODERS)}, not {name}; use `qdq compile`")
    records, _ = read_records(settings.source(settings.train))
    samples = _ENCODERS[name](records, loaded, settings) if records else []
    if not samples:
        raise DataError(f"{settings.train}: there is nothing to train on; give at least one labelled text")
    return samples


def _classes(records: Sequence[Record], loaded: LoadedModel, settings: SearchSettings) -> list[Sample]:
    gold = gold_of(records, loaded, required=True)
    if gold.values is None:
        raise DataError(f"{settings.train}: {gold.reason}; give labelled training text")
    return [
        {**tokenize(loaded.tokenizer, record, loaded.inputs, settings.sequence), "labels": value}
        for record, value in zip(gold.records, gold.trained, strict=True)
    ]


def _tags(records: Sequence[Record], loaded: LoadedModel, settings: SearchSettings) -> list[Sample]:
    gold = tags_of(records, loaded, required=True)
    if gold.values is None:
        raise DataError(f"{settings.train}: {gold.reason}; give tagged training text")
    numbers = {name: number for number, name in enumerate(gold.names)}
    rows = tagged_rows(loaded.tokenizer, records, settings.sequence, has_types(loaded.tokenizer, loaded.inputs))
    samples = []
    for row, tags in zip(rows, gold.values, strict=True):
        labels = [IGNORED_LABEL] * len(row.tokens["input_ids"])
        for place, tag in zip(row.first, tags, strict=False):
            if place >= 0:
                labels[place] = numbers[tag]
        samples.append({**{name: row.tokens[name] for name in loaded.inputs}, "labels": labels})
    return samples


def _answers(records: Sequence[Record], loaded: LoadedModel, settings: SearchSettings) -> list[Sample]:
    typed = has_types(loaded.tokenizer, loaded.inputs)
    found = windows(loaded.tokenizer, records, settings.sequence, min(OVERLAP, settings.sequence // 4), typed)
    return [training_row(part, records[part.sample], loaded.inputs) for part in found]


def _prompted(records: Sequence[Record], loaded: LoadedModel, settings: SearchSettings) -> list[Sample]:
    from qdq.uie.rows import prompt_rows

    return prompt_rows(settings.train, loaded.tokenizer, loaded.inputs, settings.sequence)


_ENCODERS: Mapping[str, Callable[[Sequence[Record], Any, Any], list[Sample]]] = {
    "text-classification": _classes,
    "token-classification": _tags,
    "question-answering": _answers,
    INFORMATION_EXTRACTION: _prompted,
}
