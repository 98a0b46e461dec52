"""Small embedding models for the tests of the Python interface."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def as_embedder(tiny_checkpoint: Any) -> Callable[..., Path]:
    """`as_embedder(folder, **settings)`: a tiny encoder there with a sentence-transformers chain, mean and length 1."""

    def build(folder: Path, **settings: Any) -> Path:
        shutil.copytree(tiny_checkpoint("bert", "feature-extraction", num_hidden_layers=1), folder)
        kinds = {"": "models.Transformer", "1_Pooling": "models.Pooling", "2_Normalize": "models.Normalize"}
        modules = [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.{kind}"}
            for index, (path, kind) in enumerate(kinds.items())
        ]
        (folder / "1_Pooling").mkdir()
        for name, content in {
            "modules.json": modules,
            "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
            "config_sentence_transformers.json": settings,
        }.items():
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
        return folder

    return build
