"""Sentences on a model's outputs: every task has them, and they say what the model's own files ask for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdq.loading.kinds import TASKS
from qdq.loading.model import load_model
from qdq.tasks.outputs import said_of

Checkpoint = Callable[..., Path]
MULTI = {"problem_type": "multi_label_classification", "num_labels": 3}
SIGMOID = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}


def said(folder: Path) -> str:
    lines = said_of(load_model(str(folder)))
    assert all(line and "\n" not in line for line in lines)
    return "\n".join(lines)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_says_what_comes_out(tiny_checkpoint: Checkpoint, task: str) -> None:
    text = said(tiny_checkpoint("bert", task, num_hidden_layers=1))
    assert all(output in text for output in TASKS[task].outputs)
    assert "token_type_ids are zeros" in text


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_labels": 2}, "the largest is the answer, a softmax over the classes"),
        (MULTI, "the sigmoid of each is the probability of that class, and a text has every class above 0.5"),
        ({**MULTI, "threshold": 0.3}, "every class above 0.3"),
        ({**MULTI, "thresholds": [0.1, 0.2, 0.3]}, "every class above 0.1, 0.2, 0.3 (LABEL_0, LABEL_1, LABEL_2)"),
        ({"num_labels": 1}, "logits are the scores themselves"),
        ({"num_labels": 1, "sentence_transformers": SIGMOID}, "asks for sigmoid behind them, which the client applies"),
    ],
)
def test_a_classifier_is_read_by_its_own_rule(tiny_checkpoint: Checkpoint, config: dict[str, Any], words: str) -> None:
    assert words in said(tiny_checkpoint("bert", num_hidden_layers=1, **config))


def test_an_embedder_names_its_pooling_and_its_prompt(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = tiny_checkpoint("bert", "feature-extraction", num_hidden_layers=1)
    folder = Path(shutil.copytree(source, tmp_path / "tiny"))
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    entries = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    text = said(folder)
    assert "one vector per text (cls pooling), of length 1" in text and "the default prompt 'query: '" in text
