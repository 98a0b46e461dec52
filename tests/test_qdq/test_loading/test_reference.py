"""The independent reference: a wrong reading of a checkpoint shows, and its head is sentence-transformers' own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qdq.errors import ParityError
from qdq.inject.families import FAMILIES
from qdq.loading.kinds import TASKS
from qdq.loading.model import LoadedModel, load_model
from qdq.loading.reference import open_reference, require_equal, require_same_tokens
from qdq.loading.runner import TorchRunner
from qdq.text.data import Record
from qdq.text.encode import encode_batch, tokenize

Checkpoint = Callable[..., Path]
TRANSFORMER, POOLING = "sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"


def feeds(loaded: LoadedModel, texts: tuple[str, ...]) -> dict[str, np.ndarray]:
    choices = 2 if loaded.task.choices else None
    return encode_batch(loaded.tokenizer, [Record(t) for t in texts], loaded.inputs, 32, "longest", choices)


def difference(loaded: LoadedModel, folder: Path, texts: tuple[str, ...]) -> float:
    reference = open_reference(folder, loaded.task.name)
    batch = feeds(loaded, texts)
    return require_equal(reference(batch), TorchRunner(loaded.module())(batch), reference.library, loaded.name)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_as_its_library_reads_it(
    family: str, tiny_checkpoint: Checkpoint, sentences: tuple[str, ...]
) -> None:
    folder = tiny_checkpoint(family)
    assert difference(load_model(str(folder)), folder, sentences[:6]) < 1e-5


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_read_as_its_library_reads_it(
    task: str, tiny_checkpoint: Checkpoint, sentences: tuple[str, ...]
) -> None:
    folder = tiny_checkpoint("bert", task)
    reference = open_reference(folder, task)
    assert reference.library.startswith("transformers' Bert")
    assert difference(load_model(str(folder)), folder, sentences[:6]) < 1e-5


def other_activation(loaded: LoadedModel) -> None:
    for layer in loaded.model.base_model.encoder.layer:
        layer.intermediate.intermediate_act_fn = torch.nn.ReLU()


def other_positions(loaded: LoadedModel) -> None:
    table = loaded.model.base_model.embeddings.position_embeddings
    table.weight.data = table.weight.data.roll(1, 0)


@pytest.mark.parametrize("misread", [other_activation, other_positions])
def test_a_model_read_wrongly_is_an_error(
    misread: Callable[[LoadedModel], None], tiny_checkpoint: Checkpoint, sentences: tuple[str, ...]
) -> None:
    folder = tiny_checkpoint("bert")
    loaded = load_model(str(folder))
    misread(loaded)
    with pytest.raises(ParityError, match=r"transformers' BertForSequenceClassification computes other outputs"):
        difference(loaded, folder, sentences[:6])


def embedder(place: Path, checkpoint: Path, pooling: dict[str, Any], **files: Any) -> Path:
    """A sentence-transformers folder around `checkpoint`; `files` by their names without the ending."""
    shutil.copytree(checkpoint, place)
    (place / "1_Pooling").mkdir()
    kinds = {"": TRANSFORMER, "1_Pooling": POOLING}
    modules = [{"idx": n, "name": str(n), "path": path, "type": kind} for n, (path, kind) in enumerate(kinds.items())]
    for name, content in {"modules": modules, "1_Pooling/config": pooling, **files}.items():
        (place / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return place


PROMPTED = {"prompts": {"query": "dog sat : "}, "default_prompt_name": "query"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "switches": ({"word_embedding_dimension": 32, "pooling_mode_max_tokens": True}, {}),
    "named": ({"embedding_dimension": 32, "pooling_mode": "mean_sqrt_len_tokens"}, {}),
    "no mode": ({"word_embedding_dimension": 32}, {}),
    "short": ({"pooling_mode": "cls", "embedding_dimension": 32}, {"sentence_bert_config": {"max_seq_length": 7}}),
    "prompt": ({"pooling_mode": "mean", "embedding_dimension": 32}, {"config_sentence_transformers": PROMPTED}),
    "left out": (
        {"pooling_mode": "mean", "embedding_dimension": 32, "include_prompt": False},
        {"config_sentence_transformers": {**PROMPTED, "truncate_dim": 5}},
    ),
    "left out, first": (
        {"pooling_mode_cls_token": True, "word_embedding_dimension": 32, "include_prompt": False},
        {"config_sentence_transformers": PROMPTED},
    ),
}
# Embeddings of four texts by sentence-transformers 6.2.0
RECORDED = Path(__file__).parent / "data" / "sentence_transformers.json"


@pytest.mark.parametrize("case", CASES)
def test_embeddings_are_those_of_sentence_transformers(
    case: str, tiny_checkpoint: Checkpoint, sentences: tuple[str, ...], tmp_path: Path
) -> None:
    """From the text on: `SentenceTransformer(folder).encode(texts)`, recorded, or run where it is installed."""
    pooling, files = CASES[case]
    folder = embedder(tmp_path / "embedder", tiny_checkpoint("bert", "feature-extraction"), pooling, **files)
    loaded, texts = load_model(str(folder)), sentences[:4]
    ours = TorchRunner(loaded.module())(feeds(loaded, texts))["sentence_embedding"]
    recorded = np.array(json.loads(RECORDED.read_text(encoding="utf-8"))[case])
    np.testing.assert_allclose(ours, recorded, atol=2e-5)
    assert difference(loaded, folder, texts) < 1e-5
    ids = [tokenize(loaded.tokenizer, Record(text), loaded.inputs, 32)["input_ids"] for text in texts]
    reference = open_reference(folder, "feature-extraction")
    require_same_tokens(reference, [(text, None, row) for text, row in zip(texts, ids, strict=True)], 32)


def test_another_head_or_other_tokens_are_errors(
    tiny_checkpoint: Checkpoint, sentences: tuple[str, ...], tmp_path: Path
) -> None:
    pooling, files = CASES["left out"]
    folder = embedder(tmp_path / "embedder", tiny_checkpoint("bert", "feature-extraction"), pooling, **files)
    loaded = load_model(str(folder))
    assert loaded.pooling is not None
    other = replace(loaded, pooling=replace(loaded.pooling, skipped=0))
    with pytest.raises(ParityError, match="computes other outputs"):
        difference(other, folder, sentences[:4])
    plain = replace(loaded, pooling=replace(loaded.pooling, dimension=None))
    with pytest.raises(ParityError, match=r"is \[4, 5\] in .* and \[4, 32\] here"):
        difference(plain, folder, sentences[:4])
    reference = open_reference(folder, "feature-extraction")
    bare = loaded.tokenizer(sentences[0])["input_ids"]
    with pytest.raises(ParityError, match=r"is \d+ tokens here"):
        require_same_tokens(reference, [(sentences[0], None, bare)], 32)


def test_texts_are_cut_to_what_the_tokenizer_says(
    tiny_checkpoint: Checkpoint, sentences: tuple[str, ...], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("bert"), tmp_path / "short"))
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 5}))
    loaded = load_model(str(folder))
    ids = tokenize(loaded.tokenizer, Record(sentences[0]), loaded.inputs, 32)["input_ids"]
    assert len(ids) == 5
    require_same_tokens(open_reference(folder, loaded.task.name), [(sentences[0], None, ids)], 32)
