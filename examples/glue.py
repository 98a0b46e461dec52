"""GLUE's files as labelled examples, features with a cache, and scores, under the names that transformers 2 had.

    from glue import convert_examples_to_features, glue_compute_metrics, output_modes, processors

transformers 5 has none of them, so that a page written for transformers 2 runs with this line in place of its imports.
`load_features` reads and writes the cache ``cached_dev_NAME_128_mrpc`` beside the data, as run_glue.py did.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qdq.base.artifacts import atomic_path
from qdq.base.correlation import pearson
from qdq.base.screen import Screen
from qdq.errors import DataError, DeployError
from qdq.tasks.gold import ORDERS, with_consensus
from qdq.tasks.labels import Classes
from qdq.tasks.metrics import classification, correlation
from qdq.text.data import Record, TextSource, read_records

BINARY = ("0", "1")
LABELS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("cola", "mrpc", "sst-2", "qqp", "wnli"), BINARY),
    **{task: ORDERS[task] for task in ("mnli", "qnli", "rte")},
    "mnli-mm": ORDERS["mnli"],
    "sts-b": (),  # scores
}
FILES = {"mnli": "dev_matched", "mnli-mm": "dev_mismatched"}
output_modes = {task: "classification" if labels else "regression" for task, labels in LABELS.items()}


@dataclass(frozen=True)
class InputFeatures:
    """Token ids of one example, padded, with its class number or score; `source` tells caches apart."""

    input_ids: list[int]
    attention_mask: list[int]
    token_type_ids: list[int]
    label: float
    source: str = ""

    @property
    def sample(self) -> dict[str, Any]:
        """The example without padding, as a collator of transformers takes it."""
        size = sum(self.attention_mask)
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {**{name: getattr(self, name)[:size] for name in names}, "labels": self.label}


torch.serialization.add_safe_globals([InputFeatures])  # for a plain torch.load of a cache


class Processor:
    """Reader of one task's folder."""

    def __init__(self, task: str) -> None:
        self.task = task

    def get_labels(self) -> list[str | None]:
        """The classes in GLUE's order; [None] for scores."""
        return list(LABELS[self.task]) or [None]

    def get_train_examples(self, data_dir: str | Path) -> list[Record]:
        """Examples of train.tsv."""
        return read(data_dir, "train")

    def get_dev_examples(self, data_dir: str | Path) -> list[Record]:
        """Examples of dev.tsv, of MNLI's dev_matched.tsv or dev_mismatched.tsv."""
        return read(data_dir, FILES.get(self.task, "dev"))


def _of(task: str) -> Any:
    return lambda: Processor(task)


processors = {task: _of(task) for task in LABELS}


def read(data_dir: str | Path, name: str) -> list[Record]:
    """Labelled records of ``name.tsv`` in the folder, without those their annotators did not agree on.

    Raises DataError for rows without a label.
    """
    path = Path(data_dir) / f"{name}.tsv"
    records, notes = with_consensus(read_records(TextSource(str(path)))[0], ())
    for note in notes:
        Screen().row("data", f"{path}: {note}")
    if any(record.label is None for record in records):
        raise DataError(f"{path}: has rows without a label; give the labelled file of the task")
    return records


def convert_examples_to_features(
    examples: Sequence[Record],
    tokenizer: Any,
    *,
    label_list: Sequence[str | None],
    max_length: int = 128,
    output_mode: str = "classification",
    source: str = "",
    **padding: Any,
) -> list[InputFeatures]:
    """Token ids padded to `max_length`, and the place of each label in `label_list`, or its score.

    `padding` is what transformers 2 took beside it (pad_token, …); here the tokenizer knows it. Raises DataError for
    a label that is not in the list.
    """
    known = Classes(tuple(map(str, label_list)), len(label_list))
    features = []
    for number, example in enumerate(examples, start=1):
        tokens = tokenizer(example.text, example.pair, truncation=True, padding="max_length", max_length=max_length)
        label = _score(example.label) if output_mode == "regression" else known.index(str(example.label))
        if label is None:
            raise DataError(f"example {number} has label '{example.label}', which is none of {known}; correct it")
        types = tokens.get("token_type_ids") or [0] * len(tokens["input_ids"])
        features.append(InputFeatures(tokens["input_ids"], tokens["attention_mask"], types, label, source))
    return features


def _score(label: str | None) -> float | None:
    try:
        return value if math.isfinite(value := float(label or "")) else None
    except ValueError:
        return None


def load_features(
    examples: Sequence[Record], tokenizer: Any, place: Path, overwrite: bool, **options: Any
) -> list[InputFeatures]:
    """Features from the cache file `place`, else of the examples, which are then written there.

    A cache of other examples, another tokenizer or other options is written anew, as is one that cannot be read. A
    folder that cannot be written is no error. `options` are those of `convert_examples_to_features`.
    """
    source, screen = _source(examples, tokenizer, options), Screen()
    # A cache that is there, and fits
    if place.is_file() and not overwrite:
        try:
            with warnings.catch_warnings(action="ignore"):  # of what a damaged file looks like
                features: list[InputFeatures] = torch.load(place, weights_only=True)  # executes nothing in the file
            if features and features[0].source == source:
                screen.row("features", f"Loading features from cached file {place}")
                return features
            screen.row("features", f"{place} is of other data, another tokenizer or length; it is written anew")
        except Exception as error:  # noqa: BLE001  # whatever it is, it is no cache
            screen.row("features", f"{place} is no cache of features ({type(error).__name__}); it is written anew")
    # A new one
    features = convert_examples_to_features(examples, tokenizer, source=source, **options)
    try:
        with atomic_path(place) as partial, partial.open("wb") as handle:  # torch refuses the name of a hidden file
            torch.save(features, handle)
        screen.row("features", f"Saving features into cached file {place}")
    except (OSError, DeployError) as error:
        screen.row("features", f"not kept for the next run: {error}")
    return features


def _source(examples: Sequence[Record], tokenizer: Any, options: Mapping[str, Any]) -> str:
    """A hash of everything that features are made of."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    backend |= {"truncation": None, "padding": None}  # those of the latest call
    made_of = [tokenizer.get_vocab(), backend, repr(tokenizer), repr(sorted(options.items()))]
    told = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode())
    for example in examples:
        told.update(repr((example.text, example.pair, example.label)).encode())
    return told.hexdigest()


def cache_of(data_dir: str | Path, split: str, model: str | Path, longest: int, task: str) -> Path:
    """The cache file's place: ``DATA_DIR/cached_dev_bert-base-uncased_128_mrpc``."""
    return Path(data_dir) / f"cached_{split}_{Path(model).name}_{longest}_{task.lower()}"


def glue_compute_metrics(task: str, preds: Any, labels: Any) -> dict[str, float]:
    """acc; with F1 of class 1 and their mean for MRPC and QQP; mcc for CoLA; pearson, spearmanr, corr for STS-B."""
    if task == "sts-b":
        found = {name: metric() for name, metric in correlation(preds, labels).items()}
        return {"pearson": found["pearson"], "spearmanr": found["spearman"], "corr": found["pearson_spearman"]}
    if task == "cola":
        return {"mcc": float(pearson(preds, labels))}  # of two classes it is Matthews' correlation
    if task not in ("mrpc", "qqp"):
        return {f"{task}/acc" if task.startswith("mnli") else "acc": float((preds == labels).mean())}
    found = {name: metric() for name, metric in classification(preds, labels, 2).items()}
    return {"acc": found["accuracy"], "f1": found["f1"], "acc_and_f1": found["accuracy_f1"]}
