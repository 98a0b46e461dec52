"""Token rows of a program's loader as text again, or the reason why they are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qdq.auto.inputs.texts import NoText, texts_of, write_texts
from qdq.compress.datasets import Labels
from qdq.loading.model import LoadedModel
from qdq.text.data import TextSource, read_records

PAIRS = [("the cat finds a meal .", "a small dog"), ("our unheardof teacher", "but why ?")]


def row_of(tokenizer: Any, texts: tuple[str, ...], label: Any = 1, **options: Any) -> dict[str, Any]:
    return {**tokenizer(*texts, **options), "labels": label}


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("padded", [False, True])
def test_pairs_come_back_with_their_classes(
    family: str, padded: bool, load_tiny: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    """Padding is no text, unknown words stay unknown, and the file is read as the rows were."""
    loaded = load_tiny(family)
    options = {"padding": "max_length", "max_length": 20} if padded else {}
    rows = [row_of(loaded.tokenizer, texts, label, **options) for label, texts in enumerate(PAIRS)]
    path, columns = write_texts(rows, Labels(), loaded, tmp_path, "dev")
    assert columns == ("text", "pair")
    records, _ = read_records(TextSource(str(path), columns, "label"))
    assert [(record.text, record.pair, record.label) for record in records] == [
        ("the cat finds a meal .", "a small dog", "0"),
        ("our [UNK] teacher", "but why ?", "1"),
    ]
    for row, record in zip(rows, records, strict=True):
        assert loaded.tokenizer(record.text, record.pair, **options)["input_ids"] == row["input_ids"]
    # The same rows are the same file, other ones another
    again, _ = write_texts(
        [{name: torch.tensor(row[name]) for name in row} for row in rows], Labels(), loaded, tmp_path, "dev"
    )
    other, _ = write_texts(rows[:1], Labels(), loaded, tmp_path, "dev")
    assert again == path != other


def test_classes_have_the_models_names(load_tiny: Callable[..., LoadedModel], tmp_path: Path) -> None:
    loaded = load_tiny(id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    path, columns = write_texts([row_of(loaded.tokenizer, ("the cat",))], Labels(), loaded, tmp_path, "train")
    assert columns == ("text",) and json.loads(path.read_text()) == {"text": "the cat", "label": "yes"}


def test_rows_that_are_no_text(load_tiny: Callable[..., LoadedModel], tmp_path: Path) -> None:
    loaded = load_tiny()
    tokenizer, one = loaded.tokenizer, ("the cat",)
    with pytest.raises(NoText, match="dev row 1 is no text of this tokenizer"):  # no [SEP] at its end
        rows = [row_of(tokenizer, one), {"input_ids": [2, 7, 8], "attention_mask": [1] * 3, "labels": 1}]
        write_texts(rows, Labels(), loaded, tmp_path, "dev")
    with pytest.raises(NoText, match="row 1 has not the 1 texts of the first"):
        write_texts([row_of(tokenizer, one), row_of(tokenizer, PAIRS[0])], Labels(), loaded, tmp_path, "dev")
    for label in (0.5, [0, 1]):
        with pytest.raises(NoText, match="dev row 0 has no class"):
            write_texts([row_of(tokenizer, one, label)], Labels(), loaded, tmp_path, "dev")
    with pytest.raises(NoText, match="does not give each text one class"):
        write_texts([row_of(tokenizer, one)], Labels(), load_tiny("bert", "token-classification"), tmp_path, "dev")
    with pytest.raises(NoText, match="is no text"):
        texts_of({"input_ids": [2, 3]}, tokenizer, "x")
