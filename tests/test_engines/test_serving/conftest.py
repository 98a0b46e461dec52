"""A tiny tokenizer and the form of a text model around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from engines.serving.form import TextForm

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*SPECIAL, "the", "cat", "sees", "a", "small", "dog", "in", "new", "york", "with", "anna", "##s")
Forms = Callable[..., TextForm]


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])],
    )
    tokenizer.add_special_tokens(["[MASK]"])
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


@pytest.fixture
def form() -> Forms:
    """`form(task=…, …)`: a classifier's form, with changes."""
    plain = TextForm(
        task="text-classification",
        engine="onnxruntime",
        files=("engine.onnx",),
        threads=1,
        hint="f32",
        inputs=("input_ids", "attention_mask", "token_type_ids"),
        outputs=("logits",),
        types={"input_ids": "int64", "attention_mask": "int64", "token_type_ids": "int64"},
        sequence=8,
        characters=80,
        packed=False,
        typed=True,
        pad={"input_ids": 0, "token_type_ids": 0},
        pad_left=False,
        sample={"TEXT": ("the cat",)},
        labels=("no", "yes"),
    )

    def changed(**changes: Any) -> TextForm:
        return replace(plain, **changes)

    return changed
