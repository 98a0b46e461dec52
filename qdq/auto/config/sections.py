"""Sections Global (model and data) and TransformerPrune, also written Prune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qdq.auto.config.keys import positive, section
from qdq.base.config import choice, nearest
from qdq.errors import ConfigError

CRITERIA = ("l1_norm",)
CLUE = ("afqmc", "tnews", "iflytek", "ocnli", "cmnli", "cluewsc2020", "csl")
GLUE = ("cola", "sst-2", "sts-b", "mnli", "qnli", "rte", "mrpc", "qqp", "wnli")
TASKS = {"clue": CLUE, "glue": GLUE}


@dataclass(frozen=True)
class Global:
    """Model and data of a run.

    Attributes:
        model_dir: a checkpoint folder or hub id, a folder with an ONNX file, or its path without the ending.
        model_filename: of the model in `model_dir`; Paddle's names stand for a file of ours there.
        params_filename: of its weights; an ONNX file and a checkpoint have them in place, so it is only looked at.
        batch_size: of training and evaluation.
        max_seq_length: in tokens; longer texts are cut, UIE's contents become several rows.
        task_name: CLUE's or GLUE's name of the task.
        dataset: clue, glue, or a folder that has one folder per task.
        train_data, dev_data: files, in place of a data set.
    """

    model_dir: str
    model_filename: str | None = None
    params_filename: str | None = None
    batch_size: int = 32
    max_seq_length: int = 128
    task_name: str | None = None
    dataset: str | None = None
    train_data: str | None = None
    dev_data: str | None = None

    def __post_init__(self) -> None:
        positive(self.batch_size, "Global: batch_size")
        if self.max_seq_length < 4:
            raise ConfigError(f"Global: max_seq_length: {self.max_seq_length} leaves no room for a text; give 128")
        if self.dataset in TASKS and self.task_name is not None:
            known = TASKS[self.dataset]
            if self.task_name.lower() not in known:
                valid = nearest(self.task_name, known)
                raise ConfigError(f"Global: task_name: {self.dataset} has no task '{self.task_name}'; {valid}")
        if self.dataset is not None and self.task_name is None:
            raise ConfigError(f"Global: dataset is {self.dataset} and task_name is missing; give the task's name")


@dataclass(frozen=True)
class TransformerPrune:
    """Width pruning of heads and feed-forward neurons.

    Attributes:
        pruned_ratio: share that is cut off; the width that stays is 1 - pruned_ratio.
        criterion: importance of heads and neurons: l1_norm of their weights; None is the change of the loss when one is
            removed (first order), as the transformer pruner of PaddleSlim has it.
    """

    pruned_ratio: float = 0.25
    criterion: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.pruned_ratio < 1:
            raise ConfigError(f"TransformerPrune: pruned_ratio: {self.pruned_ratio} is outside (0, 1)")
        if self.criterion is not None:
            choice(self.criterion, CRITERIA, "TransformerPrune: criterion")


CONVOLUTIONS = "cuts channels of convolutions, which an encoder has none of; TransformerPrune cuts heads and neurons"
NO_GAIN = "makes zeros that no INT8 engine of an encoder is faster with; TransformerPrune cuts heads and neurons"
ALGORITHMS = {  # of Prune -> why not; None is ours
    "transformer_pruner": None,
    "prune": CONVOLUTIONS,
    "asp": NO_GAIN,
    "unstructured_prune": NO_GAIN,
}
PRUNE_REFUSED = {
    "prune_params_name": "heads and neurons of every layer are cut alike, so that no parameter is named; leave it out",
}


def read_prune(values: Any, where: str) -> TransformerPrune:
    """The section TransformerPrune, or Prune with its prune_algo. Raises ConfigError."""
    given = dict(values) if isinstance(values, Mapping) else values
    if where == "Prune" and isinstance(given, dict):
        algorithm = choice(given.pop("prune_algo", "transformer_pruner"), ALGORITHMS, "Prune: prune_algo")
        if reason := ALGORITHMS[algorithm]:
            raise ConfigError(f"Prune: prune_algo: {algorithm} {reason}; write transformer_pruner")
    return section(TransformerPrune, given, where, PRUNE_REFUSED)
