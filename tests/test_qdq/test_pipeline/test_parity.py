"""Whole answers of the fake-quant module and of the exported graph: equal but for rounding, else a warning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.compare import Reading
from qdq.errors import ConfigError, ParityError
from qdq.pipeline.stages.parity import end_to_end_parity

MASK = np.array([[1, 1, 0], [1, 1, 1]], np.int64)


def test_a_compile_reports_the_same_codes_and_answers(compiled: Path) -> None:
    report = json.loads((compiled / "work" / "parity.json").read_text(encoding="utf-8"))
    assert (report["points"]["max_step"], report["points"]["min_equal"]) == (0, 1.0)
    answers = report["end_to_end"]
    assert set(answers) == {"task", "max_abs_error", "cosine_mean", "cosine_min", "answers", "agreement"}
    assert (answers["task"], answers["answers"], answers["agreement"]) == ("text-classification", 8, 1.0)
    assert answers["cosine_min"] > 0.99999
    assert answers["max_abs_error"] < 1e-4  # float32 summation order only


def echo(**shapes: list[Any]) -> onnx.ModelProto:
    """A graph whose outputs are its float inputs of these shapes, times one."""
    graph = helper.make_graph(
        [helper.make_node("Mul", [f"{name}_in", "one"], [name]) for name in shapes],
        "g",
        [helper.make_tensor_value_info(f"{name}_in", TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [numpy_helper.from_array(np.asarray(np.float32(1)), "one")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def parity(
    folder: Path,
    task: str,
    expected: dict[str, Any],
    actual: dict[str, Any],
    mask: NDArray[np.int64] = MASK,
    cuts: tuple[float, ...] = (),
) -> dict[str, Any]:
    """End-to-end parity of two given sets of outputs."""
    left, right = ({n: np.asarray(v, np.float32) for n, v in side.items()} for side in (expected, actual))
    onnx.save(echo(**{name: list(value.shape) for name, value in right.items()}), folder / "echo.onnx")
    feeds = {"input_ids": mask, "attention_mask": mask, **{f"{name}_in": value for name, value in right.items()}}
    return end_to_end_parity(lambda _: left, folder / "echo.onnx", feeds, Reading(task, cuts))


@pytest.mark.parametrize(("flipped", "fails"), [(0, False), (4, False), (5, True), (96, True)])
def test_two_per_cent_and_chance_may_differ_but_no_more(tmp_path: Path, flipped: int, fails: bool) -> None:
    expected = np.tile(np.array([1, 0], np.float32), (96, 1))
    actual = expected.copy()
    actual[:flipped] = actual[:flipped, ::-1]
    sides = ({"logits": expected}, {"logits": actual})
    if fails:
        message = rf"same answer to {(96 - flipped) / 96:.1%} of 96 \(at least 95\.1% expected\); .* point_parity names"
        with pytest.raises(ParityError, match=message):
            parity(tmp_path, "text-classification", *sides, np.ones((96, 1), np.int64))
    else:
        report = parity(tmp_path, "text-classification", *sides, np.ones((96, 1), np.int64))
        assert report["agreement"] == 1 - flipped / 96


def test_embeddings_are_judged_by_cosine(tmp_path: Path) -> None:
    embedding = {"sentence_embedding": np.random.default_rng(0).normal(size=(2, 8))}
    report = parity(tmp_path, "feature-extraction", embedding, embedding)
    assert (report["agreement"], report["answers"]) == (None, 0)
    opposite = {"sentence_embedding": -embedding["sentence_embedding"]}
    with pytest.raises(ParityError, match=r"mean cosine of -1\.0+ \(at least 0\.95 expected\)"):
        parity(tmp_path, "feature-extraction", embedding, opposite)


def test_padded_tokens_do_not_count(tmp_path: Path) -> None:
    expected = np.random.default_rng(0).normal(size=(2, 3, 4))
    actual = expected.copy()
    actual[0, 2] = -actual[0, 2]  # the padded one
    report = parity(tmp_path, "token-classification", {"logits": expected}, {"logits": actual})
    assert (report["answers"], report["agreement"], report["max_abs_error"]) == (5, 1.0, 0.0)


def test_a_span_needs_both_ends(tmp_path: Path) -> None:
    start, end = [[3, 2, 9], [1, 2, 3]], [[1, 2, 9], [3, 1, 2]]
    moved = [[1, 2, 9], [1, 3, 2]]  # another end of the second text; the padded 9 is no answer
    expected, actual = ({"start_logits": start, "end_logits": ends} for ends in (end, moved))
    with pytest.raises(ParityError, match=r"same answer to 50\.0% of 2"):
        parity(tmp_path, "question-answering", expected, actual)


def test_every_class_of_a_multi_label_model_is_an_answer(tmp_path: Path) -> None:
    """The largest logit says nothing: here it stays, and half of the classes change sides."""
    expected, actual = {"logits": [[9, 1], [9, 1]]}, {"logits": [[9, -1], [9, -1]]}
    assert parity(tmp_path, "text-classification", expected, actual)["agreement"] == 1.0
    with pytest.raises(ParityError, match=r"same answer to 50\.0% of 4"):
        parity(tmp_path, "multi-label-classification", expected, actual)
    report = parity(tmp_path, "multi-label-classification", expected, actual, cuts=(0.0, 2.0))
    assert (report["answers"], report["agreement"]) == (4, 1.0)


def test_regression_is_judged_over_all_texts(tmp_path: Path) -> None:
    report = parity(tmp_path, "text-classification", {"logits": [[1], [2]]}, {"logits": [[1.01], [2.0]]})
    assert report["agreement"] is None
    with pytest.raises(ParityError, match="mean cosine"):
        parity(tmp_path, "text-classification", {"logits": [[1], [2]]}, {"logits": [[2], [1]]})


def test_nan_and_other_shapes_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"output 'logits' of ONNX Runtime holds NaN"):
        parity(tmp_path, "text-classification", {"logits": [[1, 2], [2, 1]]}, {"logits": [[1, np.nan], [2, 1]]})
    with pytest.raises(ParityError, match=r"\[2, 3\] from ONNX Runtime and \[2, 2\] from the fake-quant module"):
        parity(tmp_path, "text-classification", {"logits": np.ones((2, 2))}, {"logits": np.ones((2, 3))})


def test_misuse_is_one_clear_error(tmp_path: Path) -> None:
    logits = {"logits": np.ones((2, 2))}
    with pytest.raises(ConfigError, match="did you mean 'text-classification'"):
        parity(tmp_path, "text-clasification", logits, logits)
    with pytest.raises(ParityError, match="ONNX Runtime cannot load the graph"):
        end_to_end_parity(lambda _: logits, tmp_path / "absent.onnx", {}, Reading("text-classification"))
