"""A table that no ONNX file can hold is refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdq.pipeline.stages import load


def test_a_table_over_the_limit_is_refused_and_leaves_nothing_behind(
    tiny_checkpoint: Callable[..., Path],
    text_file: Path,
    qdq: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load, "ONNX_TENSOR_BYTES", 120 * 32 * 4)  # the size of the table of words
    out = tmp_path / "work"
    model = str(tiny_checkpoint("bert", num_hidden_layers=1))
    ran = qdq("compile", "--model", model, "--calibration", text_file, "--sequence", "32", "--out", out)
    assert ran.code == 1
    assert "word_embeddings.weight [120, 32] is 0.0 GiB in FP32, and a tensor of an ONNX file holds 2 GiB" in ran.err
    assert not list(out.rglob("*.onnx"))
    assert not list(out.rglob("*.safetensors"))
