"""The judge of served answers: the engine's own are right, and every other one is told from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.client import ModelInfo, Tensor, TextRow
from qdq.cli.judge import LEAST, Judge, _apart, _spread
from qdq.errors import ConfigError

MODEL = "tiny-bert"
Qdq = Callable[..., Any]
OUTPUTS = ("LABEL", "SCORE", "PROBABILITIES", "LOGITS", "TOKENS", "CUT")


@pytest.fixture(scope="module")
def judge(compiled: Path, sentences: tuple[str, ...]) -> Judge:
    """The judge of the compiled classifier, with a dozen rows; some are pairs."""
    pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="the triton extra is not installed")
    judge = Judge(compiled / "work" / "onnxruntime", MODEL)
    rows = [TextRow(text) for text in sentences[:8]] + [TextRow("the cat", "a dog"), TextRow("but why ?", "the cat")]
    judge.prepare(rows)
    direct = judge.direct(0.0)
    assert direct.cpu_ms_per_text > 0 and direct.ms_per_text > 0
    return judge


def served(judge: Judge, number: int, change: float = 0.0) -> dict[str, np.ndarray]:
    """The answer of a server to a row, from the engine's own outputs."""
    logits = judge._expected[number][0]["logits"] + np.float32(change)
    label = judge.served.labels[int(logits.argmax())]
    return {"LOGITS": logits[None], "LABEL": np.array([[label]], dtype=object), "CUT": np.zeros((1, 1), np.int32)}


def test_the_engines_own_answers_are_right(judge: Judge) -> None:
    assert [judge.differs(number, served(judge, number)) for number in range(10)] == [""] * 10
    assert [judge.away(number, served(judge, number)) for number in range(10)] == [0.0] * 10
    assert judge.tolerance >= LEAST and f"{judge.tolerance:.2g}" in judge.rule


def test_a_wrong_answer_is_told(judge: Judge) -> None:
    far = served(judge, 0, change=2 * judge.tolerance * judge._spread["logits"])
    assert "away from the engine's" in judge.differs(0, far) and judge.away(0, far) > judge.tolerance
    near = served(judge, 0, change=judge.tolerance * judge._spread["logits"] / 4)
    assert judge.differs(0, near) == "" and 0 < judge.away(0, near) < judge.tolerance
    right = served(judge, 0)
    assert "is nan away" in judge.differs(0, {"LOGITS": np.full_like(right["LOGITS"], np.nan)})
    assert "shape [3]" in judge.differs(0, {"LOGITS": np.zeros((1, 3), np.float32)})
    assert "none of the outputs TOKENS" in judge.differs(0, {"TOKENS": np.zeros((1, 1), np.int32)})
    other = {**right, "LABEL": np.array([["another"]], dtype=object)}
    assert judge.differs(0, other).startswith("label is another")


def test_the_raw_repository_is_judged_by_the_engine_it_holds(workplace: Path, qdq: Qdq) -> None:
    """For the openvino target that is ONNX Runtime's graph, whose outputs are other ones."""
    work = workplace / "work"
    ran = qdq("deploy", "--out", work, "--target", "openvino", "--raw-inputs")
    assert ran.code == 0, ran.err
    judge = Judge(work / "openvino", MODEL, text=False)
    assert judge.served.file.parent.parent.parent.name == "raw_repository" and judge.engine.endswith(".onnx")
    judge.prepare([TextRow("the cat"), TextRow("but why ?", "a dog"), TextRow("again and again .")])
    for number, (alone, *_) in enumerate(judge._expected):
        assert judge.differs(number, {"logits": alone["logits"][None]}) == ""
        assert judge.differs(number, {"logits": alone["logits"][None] + 9}).startswith("logits is")


def test_vectors_of_tokens_are_compared_one_by_one() -> None:
    """A token far off is not hidden by many that are right; places are numbers, one for each token."""
    tokens = [np.eye(4, dtype=np.float32) for _ in range(3)]
    assert _spread("logits", tokens) == pytest.approx(np.sqrt(0.75))
    assert _apart("logits", tokens[0], tokens[0] + np.array([[0.0], [0.0], [0.5], [0.0]])) == pytest.approx(1.0)
    assert _apart("start_logits", np.zeros(9), np.full(9, 0.5)) == 0.5
    assert _spread("start_logits", [np.array([1.0, 3.0]), np.array([1.0, 3.0, 2.0])]) > 0


def test_outputs_that_decide_are_asked_for(judge: Judge) -> None:
    texts = ModelInfo(MODEL, (), tuple(Tensor(name, "FP32", (-1, 1)) for name in OUTPUTS))
    assert judge.outputs(texts) == ("LABEL", "LOGITS", "CUT")
    raw = ModelInfo(MODEL, (), (Tensor("logits", "FP32", (-1, 2)),))
    assert judge.outputs(raw) == ("logits",)
    feeds = judge.feeds(raw, 8)
    assert {array.shape for array in feeds.values()} == {feeds["input_ids"].shape} and feeds["input_ids"].shape[0] == 1


def test_a_folder_without_or_with_several_repositories(compiled: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no repository of a text model 'tiny-bert'"):
        Judge(tmp_path, MODEL)
    with pytest.raises(ConfigError, match=r"no repository of a model of token ids .*--raw-inputs"):
        Judge(tmp_path, MODEL, text=False)
    with pytest.raises(ConfigError, match="several targets have 'tiny-bert'; name the one that is served"):
        Judge(compiled / "work", MODEL)
