"""The sentence-transformers head: every pooling against a plain numpy statement, and what a folder may ask for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qdq.errors import ModelError
from qdq.load.model import load_model
from qdq.load.pooling import MODES, Mode, Pooling, read_pooling

Folder = Callable[..., Path]


def statement(mode: Mode, states: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """One text at a time, over its own tokens only."""
    rows = []
    for text, length in zip(states, lengths, strict=True):
        tokens = text[:length]
        rows.append(
            {
                "cls": lambda t=tokens: t[0],
                "mean": lambda t=tokens: t.mean(axis=0),
                "max": lambda t=tokens: t.max(axis=0),
                "mean_sqrt_len": lambda t=tokens: t.sum(axis=0) / np.sqrt(len(t)),
            }[mode]()
        )
    return np.stack(rows)


@given(
    states=arrays.arrays(np.float32, (3, 5, 4), elements=st.floats(-50, 50, width=32)),
    lengths=arrays.arrays(np.int64, 3, elements=st.integers(1, 5)),
)
@pytest.mark.parametrize("mode", MODES.values())
def test_pooling_equals_its_statement(mode: Mode, states: np.ndarray, lengths: np.ndarray) -> None:
    mask = torch.from_numpy((np.arange(5) < lengths[:, None]).astype(np.int64))
    actual = Pooling(mode, normalize=False).apply(torch.from_numpy(states), mask).numpy()
    np.testing.assert_allclose(actual, statement(mode, states, lengths), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES.values())
def test_normalized_embeddings_have_length_one(mode: Mode) -> None:
    states, mask = torch.randn(3, 5, 4), torch.ones(3, 5, dtype=torch.int64)
    plain = Pooling(mode, normalize=False).apply(states, mask)
    torch.testing.assert_close(
        Pooling(mode, normalize=True).apply(states, mask), plain / plain.norm(dim=1, keepdim=True)
    )


@pytest.mark.parametrize("mode", MODES.values())
def test_a_text_without_tokens_gives_finite_numbers(mode: Mode) -> None:
    embedding = Pooling(mode, normalize=True).apply(torch.randn(2, 5, 4), torch.zeros(2, 5, dtype=torch.int64))
    assert bool(embedding.isfinite().all())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Factory of a folder with modules.json and a pooling configuration."""

    def build(kinds: list[str], **settings: Any) -> Path:
        entries = [
            {"path": "" if kind == "Transformer" else f"{index}_{kind}", "type": f"sentence_transformers.models.{kind}"}
            for index, kind in enumerate(kinds)
        ]
        (tmp_path / "modules.json").write_text(json.dumps(entries), encoding="utf-8")
        for entry in entries:
            if entry["type"].endswith("Pooling"):
                (tmp_path / entry["path"]).mkdir()
                (tmp_path / entry["path"] / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        return tmp_path

    return build


@pytest.mark.parametrize("key", MODES)
@pytest.mark.parametrize("normalize", [False, True])
def test_each_head_is_read(key: str, normalize: bool, folder: Folder) -> None:
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * normalize
    others = dict.fromkeys(MODES, False)
    assert read_pooling(folder(kinds, **{**others, key: True})) == Pooling(MODES[key], normalize)


def test_a_folder_without_a_head_has_none(tmp_path: Path, folder: Folder) -> None:
    assert read_pooling(tmp_path) is None
    assert read_pooling(folder(["Transformer"])) is None


def test_an_unknown_module_is_refused_by_name(folder: Folder) -> None:
    with pytest.raises(ModelError, match=r"modules\.json: sentence-transformers module 'Dense' is not supported"):
        read_pooling(folder(["Transformer", "Pooling", "Dense"], pooling_mode_mean_tokens=True))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"pooling_mode_lasttoken": True}, "none"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, r"\['cls', 'mean'\]"),
    ],
)
def test_a_pooling_we_cannot_compute_is_refused(settings: dict[str, bool], found: str, folder: Folder) -> None:
    with pytest.raises(ModelError, match=rf"exactly one of .* found {found}"):
        read_pooling(folder(["Transformer", "Pooling"], **settings))


@pytest.mark.parametrize("text", ["{", '{"type": "Pooling"}', '["Pooling"]'])
def test_a_damaged_list_of_modules_is_one_clear_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"modules\.json.*copy the checkpoint again"):
        read_pooling(tmp_path)


def test_a_checkpoint_with_a_head_returns_sentence_embeddings(
    tiny_checkpoint: Callable[..., Path], folder: Folder, sentences: tuple[str, ...]
) -> None:
    path = folder(["Transformer", "Pooling", "Normalize"], pooling_mode_mean_tokens=True)
    shutil.copytree(tiny_checkpoint("bert", "feature-extraction"), path, dirs_exist_ok=True)
    loaded = load_model(str(path))
    assert loaded.outputs == ("sentence_embedding",)
    tokens = loaded.tokenizer(list(sentences[:4]), padding=True, return_tensors="pt")
    with torch.no_grad():
        (embedding,) = loaded.module()(**tokens)
        states = loaded.model(**tokens).last_hidden_state.numpy()
    expected = statement("mean", states, tokens["attention_mask"].sum(1).numpy())
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embedding.numpy(), expected, atol=1e-6)
