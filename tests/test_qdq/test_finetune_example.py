"""examples/finetune.py: an encoder becomes a tagger or answers questions; a head that is there keeps its classes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qdq.errors import ConfigError, DataError
from qdq.loading.model import load_model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUICK = ("--disable_tqdm", "True", "--use_cpu", "True", "--max_seq_length", "32", "--max_steps", "2")
TAGGED = "the O\ncat B-PER\nsees I-PER\n\na O\ndog B-LOC\n\n"


@pytest.fixture
def finetune(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("finetune")


def words(task: str, data: Path, model: Path, out: Path) -> list[str]:
    """The script's flags for a short training."""
    given = ("--task", task, "--dataset", data, "--model_name_or_path", model, "--output_dir", out)
    return [*map(str, given), *QUICK]


def test_an_encoder_becomes_a_tagger(finetune: Any, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Classes are the tags of the data, O first; new embeddings learn at a rate of their own."""
    encoder = tiny_checkpoint("bert", "feature-extraction", num_hidden_layers=1)
    (tmp_path / "train.txt").write_text(TAGGED * 4, encoding="utf-8")
    given = words("token-classification", tmp_path, encoder, tmp_path / "out")
    finetune.main([*given, "--learning_rate", "1e-9", "--embedding_learning_rate", "1e-2"])
    before, after = load_model(str(encoder)), load_model(str(tmp_path / "out"))
    assert after.labels == ("O", "B-LOC", "B-PER", "I-PER") and after.task.name == "token-classification"
    weights = before.model.state_dict()
    moved = {
        name: float((weight - weights[name.removeprefix("bert.")]).abs().max())
        for name, weight in after.model.state_dict().items()
        if name.removeprefix("bert.") in weights
    }
    assert moved.pop("bert.embeddings.word_embeddings.weight") > 1e-3 > max(moved.values())


def test_a_head_that_is_there_is_trained_further(
    finetune: Any, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    context = "the cat sees the blue house"
    answers = [{"text": "the blue house", "answer_start": context.index("the blue")}]
    paragraph = {"context": context, "qas": [{"id": "q", "question": "what sees the cat", "answers": answers}]}
    (tmp_path / "train.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": [paragraph] * 4}]}))
    model = tiny_checkpoint("bert", "question-answering", num_hidden_layers=1)
    given = words("question-answering", tmp_path, model, tmp_path / "out")
    finetune.main([*given, "--learning_rate", "1e-9", "--doc_stride", "8"])
    heads = [load_model(str(folder)).model.qa_outputs.weight for folder in (model, tmp_path / "out")]
    assert torch.allclose(*heads, atol=1e-6)


def test_what_cannot_be_trained_is_refused(finetune: Any, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    encoder = tiny_checkpoint("bert", "feature-extraction", num_hidden_layers=1)
    (tmp_path / "train.jsonl").write_text('{"text": "the cat", "label": 1}\n' * 4, encoding="utf-8")
    with pytest.raises(DataError, match="the training data have the classes 1; at least two are needed"):
        finetune.main(words("text-classification", tmp_path, encoder, tmp_path / "out"))
    with pytest.raises(ConfigError, match="--task: unknown value 'tagging'"):
        finetune.main(words("tagging", tmp_path, encoder, tmp_path / "out"))
    # Numbers in the order of numbers; what annotators did not agree on is no class.
    record = finetune.Record
    names = finetune.heads_names([record("a", label=label) for label in ("10", "9", "-", "2")], "text-classification")
    assert names["id2label"] == {0: "2", 1: "9", 2: "10"}
