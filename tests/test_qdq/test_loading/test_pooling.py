"""The sentence-transformers head: every pooling against a plain numpy statement, and what a folder may ask for."""

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
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qdq.errors import ModelError
from qdq.loading.model import load_model
from qdq.loading.pooling import MODES, NAMED, Chain, Mode, Pooling, read_chain

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
    assert read_chain(folder(kinds, **{**others, key: True})) == Chain(MODES[key], normalize)


def test_a_folder_without_a_head_has_none(tmp_path: Path, folder: Folder) -> None:
    assert read_chain(tmp_path) is None
    assert read_chain(folder(["Transformer"])) is None


def test_an_unknown_module_is_refused_by_name(folder: Folder) -> None:
    with pytest.raises(ModelError, match=r"modules\.json: sentence-transformers module 'Dense' is not supported"):
        read_chain(folder(["Transformer", "Pooling", "Dense"], pooling_mode_mean_tokens=True))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"pooling_mode_lasttoken": True}, r"\['pooling_mode_lasttoken'\]"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, r"\['cls', 'mean'\]"),
        ({"pooling_mode": "lasttoken"}, r"\['lasttoken'\]"),
        ({"pooling_mode": ["mean", "max"]}, r"\['mean', 'max'\]"),
        ({"pooling_mode": 3}, r"\[3\]"),
    ],
)
def test_a_pooling_we_cannot_compute_is_refused(settings: dict[str, bool], found: str, folder: Folder) -> None:
    with pytest.raises(ModelError, match=rf"exactly one of .* found {found}"):
        read_chain(folder(["Transformer", "Pooling"], **settings))


@pytest.mark.parametrize("text", ["{", '{"type": "Pooling"}', '["Pooling"]'])
def test_a_damaged_list_of_modules_is_one_clear_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"modules\.json.*copy the checkpoint again"):
        read_chain(tmp_path)


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


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("listed", [False, True])
def test_the_current_form_of_the_settings_is_read(name: str, listed: bool, folder: Folder) -> None:
    """Releases from 6 on: one name, or a list of names, instead of switches."""
    settings = {"embedding_dimension": 32, "pooling_mode": [name] if listed else name, "include_prompt": True}
    assert read_chain(folder(["Transformer", "Pooling"], **settings)) == Chain(NAMED[name], False)


def test_settings_that_name_no_mode_mean_the_mean_as_in_the_library(folder: Folder) -> None:
    assert read_chain(folder(["Transformer", "Pooling"], word_embedding_dimension=32)) == Chain("mean", False)


def write(path: Path, **content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def test_files_beside_the_chain_are_read(folder: Folder) -> None:
    place = folder(["Transformer", "Pooling", "Dropout"], pooling_mode="mean", include_prompt=False)
    write(place / "sentence_roberta_config.json", max_seq_length=48, do_lower_case=True)
    prompts = {"query": "query: ", "document": ""}
    write(place / "config_sentence_transformers.json", prompts=prompts, default_prompt_name="query", truncate_dim=8)
    found = read_chain(place)
    chain = Chain("mean", False, False, "query: ", ("query",), max_tokens=48, lower_case=True, dimension=8)
    assert found == replace(chain, texts=prompts)
    assert "'query: ' in front of every text, whose tokens are left out" in found.says()


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("1_Pooling/config.json", {"pooling_mode_mean_token": True}, "pooling_mode_mean_token is no setting"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": "yes"}, "must be true or false"),
        ("1_Pooling/config.json", {"include_prompt": 0}, "include_prompt is 0; it must be true or false"),
        ("sentence_bert_config.json", {"max_seq_length": "64"}, "max_seq_length is '64'"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task is not supported"),
        ("sentence_bert_config.json", {"query_expansion": {"length": 32}}, "query_expansion is not supported"),
        ("sentence_bert_config.json", {"modality_config": {"text": {}}}, "does not return the last hidden states"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "default_prompt_name 'q' is none of"),
        ("config_sentence_transformers.json", {"prompts": ["q"]}, "prompts must be texts by name"),
        ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim is 0"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "is of a SparseEncoder"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "maxsim"}, "similarity_fn_name is 'maxsim'"),
    ],
)
def test_a_file_that_asks_for_something_else_is_refused(file: str, content: Any, said: str, folder: Folder) -> None:
    place = folder(["Transformer", "Pooling"], pooling_mode="mean")
    write(place / file, **content)
    with pytest.raises(ModelError, match=said):
        read_chain(place)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([("custom_st.Transformer", ""), ("sentence_transformers.models.Pooling", "1_Pooling")], "code of its own"),
        ([("sentence_transformers.models.Transformer", "0_Transformer")], "move the files of that folder up"),
        ([("sentence_transformers.models.Pooling", "../1_Pooling")], "is not supported"),
        ([("sentence_transformers.models.Transformer", "")] * 2, "Transformer -> Transformer is not supported"),
        ([("sentence_transformers.models.Transformer", 3)], "the path of Transformer is 3"),
    ],
)
def test_a_chain_of_another_kind_is_refused(entries: list[Any], said: str, tmp_path: Path) -> None:
    content = [{"type": kind, "path": path} for kind, path in entries]
    (tmp_path / "modules.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError, match=said):
        read_chain(tmp_path)
