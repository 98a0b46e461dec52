"""Data of a run, to train on and to decide: of a CLUE or GLUE task, of prompt files, or of a program's loaders."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, default_data_collator

from qdq.auto.config.sections import Global
from qdq.base.choices import INFORMATION_EXTRACTION
from qdq.base.correlation import pearson
from qdq.base.screen import Screen
from qdq.compress.datasets import IGNORED_LABEL, LABEL_COLUMNS, Batches, Labels, named
from qdq.compress.evaluators import Evaluator, classes_scored, score_metrics
from qdq.errors import ConfigError, DataError
from qdq.tasks.gold import gold_of
from qdq.text.data import Record, TextSource, read_records
from qdq.text.splits import split_path
from qdq.uie.rows import LABELS, MarksCollator, prompt_rows

MOST_BATCHES = 5000  # of training data that decide where there is no evaluation data
CLASSIFICATION = "text-classification"
HUB_NAMES = {"sst-2": "sst2", "sts-b": "stsb"}  # GLUE's names -> those of the hub's configurations


NO_NAMES = Labels()  # the usual columns


@dataclass(frozen=True)
class Rows:
    """Rows of one data set with their collator; `metric` names the evaluator that decides, None is the built-in one."""

    train: Any
    dev: Any
    collate: Callable[[list[Any]], dict[str, Tensor]]
    batch_size: int
    labels: Labels = NO_NAMES
    metric: tuple[str, Evaluator] | None = None
    dev_collate: Callable[[list[Any]], dict[str, Tensor]] | None = None  # None is `collate`

    def batches(self, side: str, device: torch.device) -> Batches | None:
        """The train or dev rows in batches on `device`; None of none."""
        rows = getattr(self, side)
        collate = self.dev_collate or self.collate if side == "dev" else self.collate
        return None if rows is None else Batches(rows, collate, self.batch_size, device, self.labels)


def read_rows(options: Global, loaded: Any, trains: bool) -> Rows:
    """The data that Global names, for the model `loaded` (or what stands for one, see `qdq.auto.strategy`).

    Raises ConfigError for a task that has no data here, DataError for files that are missing or malformed.
    """
    task = loaded.task.name
    places = {side: place_of(options, side) for side in (("train", "dev") if trains else ("dev",))}
    if task == INFORMATION_EXTRACTION:
        found = {
            side: prompt_rows(place, loaded.tokenizer, loaded.inputs, options.max_seq_length)
            for side, place in places.items()
        }
        collate: Any = MarksCollator(loaded.tokenizer)
        return Rows(found.get("train"), found["dev"], collate, options.batch_size, Labels(LABELS))
    if task != CLASSIFICATION:
        raise ConfigError(
            f"Global: model_dir: {loaded.name} is a model for {task}; a configuration file has data of CLUE and GLUE "
            "tasks and of UIE: give the loaders of others to qdq.auto.compression.AutoCompression"
        )
    found = {side: _classified(place, options, loaded) for side, place in places.items()}
    collate = DataCollatorWithPadding(loaded.tokenizer)
    metric = METRICS.get(str(options.task_name).lower())
    return Rows(found.get("train"), found["dev"], collate, options.batch_size, metric=metric)


def place_of(options: Global, side: str) -> str:
    """File or hub data set of one side, train or dev, as `TextSource` takes it. Raises ConfigError, DataError."""
    given = getattr(options, f"{side}_data")
    if given is not None:
        return split_path(given, side)
    if options.dataset is None:
        raise ConfigError(f"Global: {side}_data is missing; name a file, or a data set by dataset and task_name")
    name = str(options.task_name).lower()
    if options.dataset in ("clue", "glue"):
        return split_path(f"{options.dataset} {HUB_NAMES.get(name, name)}", side)
    folder = Path(options.dataset).expanduser()
    tasks = {path.name.lower().removesuffix("_public"): path for path in folder.iterdir()} if folder.is_dir() else {}
    if name not in tasks:
        there = f"; there are {', '.join(sorted(tasks))}" if tasks else ""
        raise ConfigError(f"Global: dataset: {folder} has no folder {name}{there}; write clue, glue, or such a folder")
    return split_path(str(tasks[name]), side)


def _classified(place: str, options: Global, loaded: Any) -> list[dict[str, Any]]:
    """Token ids and class of every row that has one. Raises DataError where the labels are not the model's."""
    records, _ = read_records(TextSource(place))
    if options.task_name is not None:  # a file's folder may be called anything
        records = [replace(record, dataset=options.task_name.lower()) for record in records]
    gold = gold_of(records, loaded, required=True)
    if gold.values is None:
        raise DataError(f"{place}: {gold.reason.removeprefix('evaluation ')}; give labelled rows")
    for note in gold.notes:
        Screen().row("data", f"{place}: {note}")
    pairs = zip(gold.records, gold.trained, strict=True)
    return [{**_tokens(record, options, loaded.tokenizer), "labels": label} for record, label in pairs]


def _tokens(record: Record, options: Global, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return dict(tokenizer(record.text, record.pair, truncation=True, max_length=options.max_seq_length))


def matthews(model: nn.Module, batches: Batches) -> dict[str, float]:
    """GLUE's metric of CoLA, Matthews' correlation of two classes, with accuracy and F1 beside it."""
    found, predicted, gold = classes_scored(model, batches)
    value = pearson(predicted, gold)  # of two classes it is Matthews'
    return {"mcc": float(value) if np.isfinite(value) else 0.0, **found}


def both_correlations(model: nn.Module, batches: Batches) -> dict[str, float]:
    """GLUE's metric of STS-B, the mean of Pearson's and Spearman's correlation, and both."""
    found = score_metrics(model, batches)
    return {"pearson_spearman": (found["pearson"] + found["spearman"]) / 2, **found}


METRICS: Mapping[str, tuple[str, Evaluator]] = {
    "cola": ("Matthews' correlation", matthews),
    "sts-b": ("mean of Pearson and Spearman", both_correlations),
}


def loader_rows(loader: Any, model: Any, what: str, limit: int | None = None) -> tuple[Any, Any, int]:
    """Rows, collator and batch size of a program's loader.

    `loader` is torch's DataLoader, or anything that gives batches: mappings of arrays or tensors, as Paddle's loaders
    also in a list of one, or tuples in the order of the model's inputs. Raises DataError for other batches and none.
    """
    if isinstance(loader, DataLoader) and loader.batch_size is not None and limit is None:
        rows = named(loader.dataset, model, what)
        return rows, loader.collate_fn if rows is loader.dataset else default_data_collator, loader.batch_size
    batches = loader() if callable(loader) and not isinstance(loader, Iterable) else loader
    samples: list[dict[str, Tensor]] = []
    size = 0
    for batch in itertools.islice(iter(batches), limit):
        columns = _columns(batch, model, what)
        count = len(next(iter(columns.values())))
        size = size or count
        samples += [{name: tensor[index] for name, tensor in columns.items()} for index in range(count)]
    if not samples:
        raise DataError(f"{what}: gives no batches; give at least one")
    return samples, pad_rows, size


def _columns(batch: Any, model: Any, what: str) -> dict[str, Tensor]:
    if isinstance(batch, (list, tuple)) and len(batch) == 1 and isinstance(batch[0], Mapping):
        batch = batch[0]
    if isinstance(batch, (list, tuple)):
        rows = named(list(zip(*batch, strict=True)), model, what)
        batch = default_data_collator([rows[index] for index in range(len(rows))])
    if not isinstance(batch, Mapping):
        raise DataError(f"{what}: gives {type(batch).__name__}; give mappings of names to arrays")
    return {name: torch.as_tensor(np.asarray(value)) for name, value in batch.items()}


def pad_rows(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of different lengths as one batch; without an attention mask the shorter ones get one."""
    batch = {}
    for name in rows[0]:
        parts = [row[name] for row in rows]
        ignored = IGNORED_LABEL if name in LABEL_COLUMNS and not parts[0].is_floating_point() else 0
        batch[name] = pad_sequence(parts, True, ignored) if parts[0].dim() else torch.stack(parts)
    lengths = [len(row["input_ids"]) for row in rows if "input_ids" in row]
    if "attention_mask" not in batch and len(set(lengths)) > 1:
        batch["attention_mask"] = pad_sequence([torch.ones(length, dtype=torch.int64) for length in lengths], True, 0)
    return batch
