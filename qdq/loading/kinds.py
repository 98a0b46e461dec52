"""The tasks: the transformers class that loads each, its graph outputs, and its detection from a checkpoint."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qdq.base.choices import INFORMATION_EXTRACTION
from qdq.base.config import choice
from qdq.errors import ModelError

CHOICES = 2  # answers per multiple-choice sample that is built from plain text


@dataclass(frozen=True)
class Task:
    """One of the eight model classes QDQBERT documents, or UIE.

    Attributes:
        name: the Hugging Face task name, as TASK= takes it.
        auto_class: transformers Auto class that builds it, or one of this project as ``module:class``.
        outputs: names of the graph outputs, which are attributes of the transformers output.
        suffixes: architecture suffixes that mean this task; "Model" is the bare encoder.
        choices: inputs are [B, N, S] instead of [B, S].
    """

    name: str
    auto_class: str
    outputs: tuple[str, ...]
    suffixes: tuple[str, ...]
    choices: bool = False

    def auto(self) -> Any:
        """The Auto class itself."""
        module, _, name = self.auto_class.rpartition(":")
        return getattr(importlib.import_module(module or "transformers"), name)

    def shape(self, batch: int, sequence: int) -> tuple[int, int] | tuple[int, int, int]:
        """Shape of every input: [batch, sequence], or [batch, CHOICES, sequence]."""
        return (batch, CHOICES, sequence) if self.choices else (batch, sequence)


SENTENCE_EMBEDDING = "sentence_embedding"  # replaces last_hidden_state when the folder has a pooling head

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("feature-extraction", "AutoModel", ("last_hidden_state",), ("Model", "ForPreTraining")),
        Task("text-classification", "AutoModelForSequenceClassification", ("logits",), ("ForSequenceClassification",)),
        Task("token-classification", "AutoModelForTokenClassification", ("logits",), ("ForTokenClassification",)),
        Task(
            "question-answering",
            "AutoModelForQuestionAnswering",
            ("start_logits", "end_logits"),
            ("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
        ),
        Task("fill-mask", "AutoModelForMaskedLM", ("logits",), ("ForMaskedLM",)),
        Task("multiple-choice", "AutoModelForMultipleChoice", ("logits",), ("ForMultipleChoice",), choices=True),
        Task(
            "next-sentence-prediction",
            "AutoModelForNextSentencePrediction",
            ("logits",),
            ("ForNextSentencePrediction",),
        ),
        Task(
            INFORMATION_EXTRACTION,
            "qdq.loading.uie:UIE",
            ("start_prob", "end_prob"),
            ("UIE", "UIEM", "UIEModel", "UIETorch"),
        ),
        Task("language-modeling", "AutoModelForCausalLM", ("logits",), ("LMHeadModel", "ForCausalLM")),
    )
}


def task_named(name: str) -> Task:
    """The task called `name`. Raises ConfigError naming the nearest one."""
    return TASKS[choice(name, TASKS, "task")]


def detect_task(architectures: list[str] | None, where: str) -> Task:
    """The task a checkpoint was saved for, by its architecture's class name. Raises ModelError when no name fits."""
    by_suffix = {suffix: task for task in TASKS.values() for suffix in task.suffixes}
    for architecture in architectures or []:
        matching = [suffix for suffix in by_suffix if architecture.endswith(suffix)]
        if matching:
            return by_suffix[max(matching, key=len)]  # "BertLMHeadModel" ends with "Model" too
    stated = ", ".join(architectures or []) or "none"
    raise ModelError(f"{where}: cannot tell the task from its architectures ({stated}); give --task (TASK=)")
