"""A graph that refuses negative ids: every other answer stays as it was, to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.onnxruntime import OnnxRuntimeRunner, OnnxRuntimeSettings
from engines.onnxruntime.guard import refuse_negative_ids
from engines.types import BuiltEngine
from qdq.errors import BuildError

from .triton_parts import FEEDS, tiny_onnx


@pytest.mark.parametrize("external", [False, True])
def test_negative_ids_are_errors_and_others_are_answered_as_before(
    engine: BuiltEngine, tmp_path: Path, external: bool
) -> None:
    plain = replace(engine, files=(tiny_onnx(tmp_path / "model.onnx", external=external),))
    guarded = refuse_negative_ids(plain, tmp_path / "guarded")
    onnx.checker.check_model(str(guarded.files[0]))
    before, after = (OnnxRuntimeRunner(one.files[0], OnnxRuntimeSettings(1)) for one in (plain, guarded))
    ids = np.stack([FEEDS["input_ids"], np.full(6, 1023), np.zeros(6, np.int64)])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    np.testing.assert_array_equal(before(feeds)["logits"], after(feeds)["logits"])
    for wrong in (-1, -1024, 1024):
        bad = feeds | {"input_ids": np.where(ids == 0, wrong, ids)}
        with pytest.raises(BuildError, match="cannot run a batch"):
            after(bad)
    assert before(feeds | {"input_ids": np.where(ids == 0, -1, ids)})["logits"].shape == (3, 2)  # what it is against
