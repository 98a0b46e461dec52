"""One model as old and new tools save it: the answers are the same, and a number that is none is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdq.loading.model import load_model
from qdq.loading.reference import open_reference
from qdq.loading.runner import TorchRunner
from qdq.text.data import Record
from qdq.text.encode import encode_batch

Saved = Callable[[Path], None]


def no_metadata(folder: Path) -> None:
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")


def gamma_and_beta(folder: Path) -> None:
    old = {"Norm.weight": "Norm.gamma", "Norm.bias": "Norm.beta"}
    weights = load_file(folder / "model.safetensors")
    for now, before in old.items():
        weights = {name.replace(now, before): value for name, value in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def position_ids(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.position_ids"] = torch.arange(64)[None]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def in_shards(folder: Path) -> None:
    load_model(str(folder)).model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()


def vocabulary_only(folder: Path) -> None:
    vocabulary = load_model(str(folder)).tokenizer.get_vocab()
    for path in folder.glob("*token*"):
        path.unlink()
    words = sorted(vocabulary, key=lambda word: vocabulary[word])
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


def half_precision(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: value.half() for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def folder(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint("bert", num_hidden_layers=1), tmp_path / "tiny-bert"))


@pytest.mark.parametrize(
    "save", [no_metadata, gamma_and_beta, position_ids, in_shards, vocabulary_only, half_precision]
)
def test_the_answers_are_those_of_the_model_as_it_was(folder: Path, save: Saved, sentences: tuple[str, ...]) -> None:
    loaded = load_model(str(folder))
    feeds = encode_batch(loaded.tokenizer, [Record(text) for text in sentences[:4]], loaded.inputs, 32)
    expected = TorchRunner(loaded.module())(feeds)["logits"]
    save(folder)
    again = load_model(str(folder))
    fed = encode_batch(again.tokenizer, [Record(text) for text in sentences[:4]], again.inputs, 32)
    assert all((fed[name] == feeds[name]).all() for name in feeds)
    tolerance = 1e-2 if save is half_precision else 1e-6
    for found in (TorchRunner(again.module())(fed), open_reference(folder, "text-classification")(fed)):
        assert abs(found["logits"] - expected).max() < tolerance


def test_a_number_that_is_none_is_refused_by_name(folder: Path, tmp_path: Path, qdq: Callable[..., object]) -> None:
    name = "bert.encoder.layer.0.output.dense.weight"
    weights = load_file(folder / "model.safetensors")
    weights[name][3, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a small dog"}) + "\n")
    ran = qdq(
        "calibrate",
        "--model",
        folder,
        "--calibration",
        tmp_path / "a.jsonl",
        "--samples",
        "1",
        "--sequence",
        "32",
        "--out",
        tmp_path / "w",
    )
    assert ran.code in (1, 2) and name.removesuffix(".weight") in ran.err and "internal error" not in ran.err  # type: ignore[attr-defined]
