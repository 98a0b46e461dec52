"""Raw repositories behind the stand-ins: ids that the model has no rows for fail alone, with 400 and in words."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.client import LoadSettings, Refused, connect, parse_address, run_load
from engines.triton.model_config import read_config
from qdq.base.choices import RAW_REPOSITORY

from ..conftest import run_qdq
from .conftest import CLASSIFIER, HANGS, described, serving

GOOD = {
    "input_ids": np.array([[2, 5, 6, 7, 3, 0]]),
    "attention_mask": np.array([[1, 1, 1, 1, 1, 0]]),
    "token_type_ids": np.zeros((1, 6), np.int64),
}
_WRONG = (
    ({name: array for name, array in GOOD.items() if name != "attention_mask"}, "expected 3 inputs but got 2"),
    ({name: array[0] for name, array in GOOD.items()}, "shape"),
)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_ids_without_a_row_fail_alone(deployed: Callable[[str], Path], tmp_path: Path, backend: str) -> None:
    """From 16 clients at once, in the same batches as good requests, which all get the answer of one that is alone."""
    pytest.importorskip(backend, reason="the cpu extra is not installed")
    work = deployed(CLASSIFIER)
    ran = run_qdq("deploy", "--out", work, "--raw-inputs", "--triton-backend", backend)
    assert ran.code == 0, ran.err
    shutil.move(work / "onnxruntime" / RAW_REPOSITORY, tmp_path / "raw")
    known = read_config(tmp_path / "raw" / CLASSIFIER / "config.pbtxt").parameters
    words, types = (int(known[name].string_value) for name in ("vocabulary", "token_types"))
    bad = [("input_ids", -1), ("input_ids", words), ("token_type_ids", -1), ("token_type_ids", types)]
    feeds = [GOOD] * 12 + [_with(name, value) for name, value in bad]
    with serving(tmp_path / "raw") as server:
        for wrong, said in _WRONG:
            with connect(parse_address(server.http), HANGS) as client, pytest.raises(Refused, match=said) as refused:
                client.infer(described(server.http, CLASSIFIER), wrong, ("logits",))
            assert refused.value.status == 400
        for url in (server.http, f"grpc://{server.grpc}"):
            address, model = parse_address(url), described(url, CLASSIFIER)
            (alone,) = run_load(address, model, [GOOD], LoadSettings(1, HANGS, HANGS, 1), ("logits",))
            calls = run_load(address, model, feeds, LoadSettings(16, 600.0, HANGS, 10 * len(feeds)), ("logits",))
            assert alone.outputs is not None and len(calls) == 10 * len(feeds)
            for call in calls:
                if call.row < 12:
                    assert call.outputs is not None, call.message
                    np.testing.assert_allclose(call.outputs["logits"], alone.outputs["logits"], rtol=1e-4, atol=1e-5)
                else:
                    name, value = bad[call.row - 12]
                    assert call.status == 400 and f"{name} holds {value} at [0, 2]; the model has 0 to" in call.message


def _with(name: str, value: int) -> dict[str, np.ndarray]:
    changed = GOOD[name].copy()
    changed[0, 2] = value
    return {**GOOD, name: changed}
