"""Tiny models with data that they label themselves, so that the model as given is always right."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import default_data_collator

from qdq.auto.compression import AutoCompression
from qdq.loading.model import LoadedModel

Rows = list[dict[str, torch.Tensor]]


@pytest.fixture(scope="session")
def rows(load_tiny: Callable[..., LoadedModel], encode: Callable[..., Any]) -> Callable[..., Rows]:
    """`rows(count)`: encoded sentences, labelled by what the tiny checkpoint of a classifier says."""

    @cache
    def make(count: int = 24, labelled: bool = True) -> Rows:
        loaded = load_tiny()
        inputs = encode(loaded, count)
        with torch.no_grad():
            labels = loaded.model(**inputs).logits.argmax(-1)
        extra = {"labels": labels} if labelled else {}
        return [{name: value[i] for name, value in {**inputs, **extra}.items()} for i in range(count)]

    return make


@pytest.fixture
def compressing(tiny_checkpoint: Callable[..., Any], rows: Callable[..., Rows], tmp_path: Any) -> Callable[..., Any]:
    """`compressing(config, **options)`: an AutoCompression of the tiny classifier on 24 rows, in batches of 4."""

    def make(config: dict[str, Any] | None, labelled: bool = True, **options: Any) -> AutoCompression:
        loader = DataLoader(rows(labelled=labelled), batch_size=4, collate_fn=default_data_collator)  # type: ignore[arg-type]
        given: dict[str, Any] = {"save_dir": str(tmp_path / "out"), **options}
        return AutoCompression(str(tiny_checkpoint()), loader, config=config, **given)

    return make
