"""The tokenizer against the model: ids, types and positions beside the sizes of the tables they index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from qdq.errors import DataError, ModelError
from qdq.loading.model import load_model

Checkpoint = Callable[..., Path]


@pytest.fixture
def copied(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Callable[..., Path]:
    """Factory ``(model_type, **config) -> folder``: a copy of a tiny checkpoint of the test's own."""
    return lambda *names, **config: Path(shutil.copytree(tiny_checkpoint(*names, **config), tmp_path / "copy"))


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def add_tokens(folder: Path, *tokens: str) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(folder)


def test_added_tokens_without_rows_are_refused_with_both_numbers(copied: Callable[..., Path]) -> None:
    folder = copied()
    add_tokens(folder, "<user>", "<url>")
    with pytest.raises(
        ModelError,
        match=r"makes ids up to 121 and the model's table has 120 rows, so 2 tokens have none \('<user>', '<u",
    ):
        load_model(str(folder))


def test_fewer_ids_than_rows_are_fine(copied: Callable[..., Path]) -> None:
    assert load_model(str(copied(vocab_size=128))).model.config.vocab_size == 128  # padded to a multiple


def test_a_special_id_of_the_template_beyond_the_table(copied: Callable[..., Path]) -> None:
    folder = copied()
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [500]
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"ids up to 500 .* 120 rows, so 1 tokens have none \('id 500'\)"):
        load_model(str(folder))


@pytest.mark.parametrize(("padding", "most"), [(1, 64), (3, 62), (0, 65)])
def test_positions_begin_behind_the_checkpoints_own_padding_id(
    copied: Callable[..., Path], padding: int, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_model(str(copied("roberta", pad_token_id=padding)))
    assert loaded.max_sequence == most
    ids = torch.full((1, most), 7)
    with torch.no_grad():
        loaded.module()(ids, torch.ones_like(ids))
        longer = torch.full((1, most + 1), 7)
        with pytest.raises(
            DataError, match=rf"has {most + 1} tokens and the model {most} positions; give at most {most}"
        ):
            loaded.module()(longer, torch.ones_like(longer))
    doubt = f"counts positions by padding id {padding} and the tokenizer pads with 1" in caplog.text
    assert doubt == (padding != 1)


def test_types_beyond_the_table(copied: Callable[..., Path]) -> None:
    loaded = load_model(str(copied(type_vocab_size=1)))  # single texts are fine
    ids = torch.tensor([[2, 7, 3, 7, 3]])
    with pytest.raises(DataError, match=r"token type 1 and the model's table 1 rows; give single texts, not pairs"):
        loaded.module()(ids, torch.ones_like(ids), torch.tensor([[0, 0, 0, 1, 1]]))


def test_an_id_beyond_the_table_in_a_batch(copied: Callable[..., Path]) -> None:
    module = load_model(str(copied())).module()
    for wrong in (120, -1):
        ids = torch.tensor([[2, wrong, 3]])
        with pytest.raises(DataError, match=rf"has token id {wrong} and the model's table 120 rows"):
            module(ids, torch.ones_like(ids))


def test_types_that_a_roberta_was_trained_with_are_an_input(copied: Callable[..., Path]) -> None:
    folder = copied("roberta", type_vocab_size=2)
    assert "token_type_ids" not in load_model(str(folder)).inputs  # its tokenizer makes none
    names = ["input_ids", "token_type_ids", "attention_mask"]
    edit(folder / "tokenizer_config.json", model_input_names=names)
    loaded = load_model(str(folder))
    assert "token_type_ids" in loaded.inputs
    ids = torch.tensor([[0, 7, 2, 9, 2]])
    with torch.no_grad():
        first, second = (loaded.module()(ids, torch.ones_like(ids), torch.full_like(ids, kind))[0] for kind in (0, 1))
    assert not torch.equal(first, second)


def test_a_tokenizer_that_needs_a_package_names_it_and_nothing_else(copied: Callable[..., Path]) -> None:
    folder = copied(vocab_size=120)
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    edit(folder / "tokenizer_config.json", tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="mecab")
    with pytest.raises(ModelError, match=r"needs fugashi, which is not installed; pip install fugashi$"):
        load_model(str(folder))


def test_a_table_smaller_than_the_config_says_is_refused(copied: Callable[..., Path]) -> None:
    folder = copied()
    weights = load_file(folder / "model.safetensors")
    key = "bert.embeddings.word_embeddings.weight"
    save_file({**weights, key: weights[key][:100].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"word_embeddings\.weight is \[100, 32\] in its weights and \[120, 32\]"):
        load_model(str(folder))
