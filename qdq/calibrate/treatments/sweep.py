"""The sweep: every algorithm on every number and size of batches, built by fake quantization, scored, the best kept.

One preparation (and one pass of statistics) serves all algorithms of one set of samples; only what belongs to an
algorithm is done again.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qdq.base.types import Progress
from qdq.calibrate.rebatch import Batch, MicroBatches
from qdq.calibrate.table import CalibrationTable
from qdq.calibrate.treatments.order import Report, finish, prepare
from qdq.calibrate.treatments.settings import PtqSettings, Treatments
from qdq.errors import CalibrationError, ConfigError, ParityError
from qdq.inject.quantizer import TensorQuantizer, Treated
from qdq.inject.spec import QuantSpec

Score = Mapping[str, float | None]


@dataclass
class Trial:
    """One row of the sweep: an algorithm on a set of samples, with its scores or its failure."""

    algorithm: str
    batch_size: int
    batch_num: int | None
    samples: int
    scores: dict[str, float | None] = field(default_factory=dict)
    failure: str = ""
    best: bool = False

    @property
    def rank(self) -> tuple[float, ...]:
        """The scores to compare by, in their order."""
        return tuple(value for value in self.scores.values() if value is not None)

    def as_json(self) -> dict[str, Any]:
        """One row of sweep.json."""
        row = {name: getattr(self, name) for name in ("algorithm", "batch_size", "batch_num", "samples")}
        return row | dict(self.scores) | {"best": self.best} | ({"failure": self.failure} if self.failure else {})


@dataclass
class Swept:
    """The best trial's state and table, and all trials in the order they were made."""

    state: Mapping[str, Tensor | None]
    table: CalibrationTable
    report: Report
    trials: list[Trial]


def sweep(  # noqa: PLR0913  # six arguments and a progress bar; a dataclass would only hide them
    build: Callable[[], nn.Module],
    samples: Sequence[Batch],
    spec: QuantSpec,
    settings: PtqSettings,
    treatments: Treatments,
    score: Callable[[nn.Module], Score],
    progress: Progress | None = None,
) -> Swept:
    """Try all of `settings` and return the best.

    Args:
        build: makes a freshly injected module; called once per set of samples.
        samples: batches with the samples in the user's order; the first batch_size * batch_num of them are used.
        spec: of the injected module.
        settings: the three lists, and parameters of the algorithms.
        treatments: applied beside choosing ranges.
        score: scores of a module with quantizers enabled; compared in the order of their keys, larger is better, None
            is no score. May raise ParityError (NaN or infinite outputs): that trial has failed.
        progress: called with (done, total) trials.

    Raises ConfigError when there are fewer samples than a combination asks for, CalibrationError when all fail.
    """
    algorithms = settings.algorithms()
    rows = sum(len(batch["attention_mask"]) for batch in samples)
    sizes = _sizes(settings, rows)
    trials: list[Trial] = []
    best: Trial | None = None
    for size, count in sizes:
        # One preparation and one pass of statistics for all algorithms on these samples
        module = build()
        batches = MicroBatches.of(first_samples(samples, None if count is None else size * count), size)
        prepared = prepare(module, batches, spec, algorithms, treatments)
        for algorithm in algorithms:
            trial = Trial(algorithm.label, size, count, min(rows, size * count if count else rows))
            trials.append(trial)
            table, report = finish(prepared, algorithm, settings.seed)
            try:
                trial.scores = dict(score(module))
            except ParityError as error:
                trial.failure = str(error)
            if not trial.failure and (best is None or trial.rank > best.rank):
                best, swept = trial, Swept(quantization_state(module), table, report, trials)
            if progress:
                progress(len(trials), len(sizes) * len(algorithms))
    if best is None:
        raise CalibrationError(f"every candidate of the sweep failed; the first: {trials[0].failure}")
    best.best = True
    return swept


def _sizes(settings: PtqSettings, rows: int) -> list[tuple[int, int | None]]:
    """Every batch size with every number of batches (None: all). Raises ConfigError where `rows` are too few."""
    sizes = list(itertools.product(settings.batch_size_list, settings.batch_num_list))
    for size, count in sizes:
        if count is not None and size * count > rows:
            raise ConfigError(f"batch_num_list: {count} batches of {size} are more than the {rows} samples there are")
    return sizes


def first_samples(batches: Sequence[Batch], count: int | None) -> list[Batch]:
    """The first `count` samples of `batches` (all when None), cut out of the last batch where needed."""
    found: list[Batch] = []
    for batch in batches:
        rows = len(batch["attention_mask"])
        if count is not None:
            rows = min(rows, count)
            count -= rows
        if rows:
            found.append({name: tensor[:rows] for name, tensor in batch.items()})
    return found


def quantization_state(module: nn.Module) -> dict[str, Tensor | None]:
    """A copy of every tensor a trial decided: ranges and treatments, None where there is none."""
    state: dict[str, Tensor | None] = {}
    for path, part in module.named_modules():
        if isinstance(part, TensorQuantizer):
            state[f"{path}._amax"] = copy.deepcopy(part.amax)
        elif isinstance(part, Treated):
            state |= {f"{path}.{name}": copy.deepcopy(getattr(part, name)) for name in part.TREATMENTS}
    return state


def set_quantization_state(module: nn.Module, state: Mapping[str, Tensor | None]) -> None:
    """Give an injected module what `quantization_state` took from another, and enable its quantizers."""
    parts = dict(module.named_modules())
    for key, value in state.items():
        path, _, name = key.rpartition(".")
        part = parts[path]
        if isinstance(part, TensorQuantizer) and isinstance(value, torch.Tensor):
            part.set_amax(value)
            part.enable_quant()
        elif isinstance(part, Treated):
            part.treat(name, value)


def table_text(trials: Sequence[Trial]) -> str:
    """All trials as text, the best one marked, at most 80 columns where names allow."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.scores))
    header = ["algorithm", "batches", *[name.replace("_", " ") for name in names], ""]
    rows = [header]
    for trial in trials:
        batches = f"{'all' if trial.batch_num is None else trial.batch_num} x {trial.batch_size}"
        values = [trial.scores.get(name) for name in names]
        shown = ["-" if value is None else f"{value:.4f}" for value in values]
        rows.append([trial.algorithm, batches, *shown, "best" if trial.best else trial.failure])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:-1]), row[-1]] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)
