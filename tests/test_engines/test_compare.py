"""accuracy.json against small fake runners whose answers can be worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from engines.compare import compare, relate
from engines.metrics import cosine
from engines.types import Runner
from qdq.base.types import Feeds, Outputs
from qdq.errors import ConfigError, DataError, ParityError

TASKS = {
    "feature-extraction": ("sentence_embedding",),
    "text-classification": ("logits",),
    "next-sentence-prediction": ("logits",),
    "multiple-choice": ("logits",),
    "token-classification": ("logits",),
    "fill-mask": ("logits",),
    "language-modeling": ("logits",),
    "question-answering": ("start_logits", "end_logits"),
}
PROMPTS = "information-extraction"
TOKEN_LEVEL = ("token-classification", "fill-mask", "language-modeling")


def batch(lengths: Sequence[int] = (4, 2), sequence: int = 4) -> Feeds:
    mask = (np.arange(sequence) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": np.arange(mask.size).reshape(mask.shape), "attention_mask": mask}


def gives(**outputs: Any) -> Runner:
    """A runner that always returns these arrays."""
    arrays = {name: np.asarray(value, np.float32) for name, value in outputs.items()}
    return lambda feeds: {name: value.copy() for name, value in arrays.items()}


def random_outputs(task: str, rng: np.random.Generator, texts: int = 2, sequence: int = 4) -> Outputs:
    shape = {True: (texts, sequence, 5), False: (texts, 3)}[task in TOKEN_LEVEL]
    shape = (texts, sequence) if task == "question-answering" else shape
    return {name: rng.normal(size=shape).astype(np.float32) for name in TASKS[task]}


# Invariants


@settings(max_examples=40, deadline=None)
@given(task=st.sampled_from(sorted(TASKS)), seed=st.integers(0, 2**32), batches=st.integers(1, 3))
def test_identical_runners_agree_exactly(task: str, seed: int, batches: int) -> None:
    runner = gives(**random_outputs(task, np.random.default_rng(seed)))
    report = compare(runner, runner, [batch()] * batches, task)
    assert report["samples"] == 2 * batches
    assert (report["cosine_mean"], report["cosine_min"], report["max_abs_error"]) == (1, 1, 0)
    assert report["agreement"] == (None if task == "feature-extraction" else 1)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@settings(max_examples=40, deadline=None)
@given(
    task=st.sampled_from([*TOKEN_LEVEL, "question-answering", "feature-extraction"]),
    seed=st.integers(0, 2**32),
    junk=st.sampled_from([0.0, -7.0, 1e30, np.inf, np.nan]),
)
def test_padded_positions_never_matter(task: str, seed: int, junk: float) -> None:
    rng = np.random.default_rng(seed)
    shape = (2, 4) if task == "question-answering" else (2, 4, 5)
    names = ("last_hidden_state",) if task == "feature-extraction" else TASKS[task]
    reference = {name: rng.normal(size=shape).astype(np.float32) for name in names}
    candidate = {name: values + rng.normal(size=shape).astype(np.float32) for name, values in reference.items()}
    feeds = batch()
    spoiled = {name: values.copy() for name, values in candidate.items()}
    for values in spoiled.values():
        values[feeds["attention_mask"] == 0] = junk
    clean = compare(gives(**reference), gives(**candidate), [feeds], task)
    assert compare(gives(**reference), gives(**spoiled), [feeds], task) == clean


vectors = hnp.arrays(np.float32, st.integers(1, 20), elements=st.floats(-1e3, 1e3, width=32))


@settings(max_examples=60, deadline=None)
@given(vectors, st.floats(2**-20, 2**20))
def test_cosine_ignores_scale_and_knows_its_bounds(vector: NDArray[np.float32], scale: float) -> None:
    left = vector.astype(np.float64)
    other = np.roll(left, 1) + 1
    assert cosine(left, left) == 1
    assert cosine(left, other) == pytest.approx(cosine(scale * left, other), abs=1e-9)
    assert cosine(left, other) == cosine(other, left)
    assert -1 <= cosine(left, other) <= 1


def test_cosine_of_zero_vectors_is_defined() -> None:
    zero, one = np.zeros(3), np.ones(3)
    assert (cosine(zero, zero), cosine(zero, one), cosine(one, -one)) == (1, 0, -1)


@settings(max_examples=30, deadline=None)
@given(task=st.sampled_from(sorted(TASKS)), seed=st.integers(0, 2**32))
def test_batching_does_not_change_the_result(task: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pair = random_outputs(task, rng, texts=4), random_outputs(task, rng, texts=4)
    feeds = batch((4, 3, 2, 1))
    whole = compare(gives(**pair[0]), gives(**pair[1]), [feeds], task)

    def lookup(outputs: Outputs) -> Runner:
        return lambda part: {n: v[part["input_ids"][:, 0] // 4] for n, v in outputs.items()}

    parts = [{name: values[i : i + 1] for name, values in feeds.items()} for i in range(4)]
    split = compare(lookup(pair[0]), lookup(pair[1]), parts, task)
    for key in ("cosine_mean", "cosine_min", "max_abs_error", "mean_abs_error", "agreement", "agreement_of"):
        assert split[key] == (pytest.approx(whole[key]) if whole[key] is not None else None)


# Numbers worked out by hand


def test_sentence_embeddings_are_compared_row_by_row() -> None:
    reference = gives(sentence_embedding=[[1, 0], [3, 4]])
    candidate = gives(sentence_embedding=[[2, 0], [4, 3]])
    report = compare(reference, candidate, [batch()], "feature-extraction")
    assert report["cosine_mean"] == pytest.approx((1 + 24 / 25) / 2)
    assert report["cosine_min"] == pytest.approx(24 / 25)
    assert (report["max_abs_error"], report["mean_abs_error"]) == (1, 0.75)
    assert report["outputs"] == {"sentence_embedding": {"max_abs_error": 1, "mean_abs_error": 0.75, "mse": 0.75}}
    assert report["agreement"] is None and report["logit_mse"] is None and report["metric"] is None


def test_classification_gives_agreement_accuracy_and_drop() -> None:
    reference = gives(logits=[[2, 1], [0, 3], [1, 0], [0, 1]])
    candidate = gives(logits=[[1, 2], [0, 3], [1, 0], [2, 1]])  # changes its mind on the first and the last
    feeds = batch((4, 2, 2, 1))
    report = compare(reference, candidate, [feeds], "text-classification", labels=[0, 1, 0, 0])
    assert (report["agreement"], report["agreement_of"], report["agreement_unit"]) == (0.5, 4, "text")
    assert report["metric"] == {"name": "accuracy", "fp32": 0.75, "int8": 0.75, "drop_points": 0}
    assert report["logit_mse"] == pytest.approx((1 + 1 + 4) / 8)
    report = compare(reference, candidate, [feeds], "next-sentence-prediction", labels=[0, 1, 0, 1])
    assert report["metric"] == {"name": "accuracy", "fp32": 1, "int8": 0.5, "drop_points": 50}


def test_token_answers_count_per_real_token() -> None:
    reference = np.zeros((2, 4, 2))
    candidate = reference.copy()
    candidate[0, 1, 1] = 1  # a real token
    candidate[1, 3, 1] = 1  # padding
    report = compare(gives(logits=reference), gives(logits=candidate), [batch()], "token-classification")
    assert (report["agreement"], report["agreement_of"], report["agreement_unit"]) == (5 / 6, 6, "token")


def test_a_span_agrees_only_when_start_and_end_do_inside_the_text() -> None:
    start = np.array([[1, 0, 0, 0], [0, 1, 0, 9]])  # position 3 of text 1 is padding
    end = np.array([[0, 1, 0, 0], [0, 1, 0, 0]])
    moved = np.array([[0, 0, 1, 0], [0, 1, 0, 0]])
    reference = gives(start_logits=start, end_logits=end)
    quiet = start.copy()
    quiet[1, 3] = 0
    same = compare(reference, gives(start_logits=quiet, end_logits=end), [batch()], "question-answering")
    assert (same["agreement"], same["cosine_min"], same["max_abs_error"]) == (1, 1, 0)
    other = compare(reference, gives(start_logits=start, end_logits=moved), [batch()], "question-answering")
    assert (other["agreement"], other["agreement_of"], other["agreement_unit"]) == (0.5, 2, "span")
    assert set(other["outputs"]) == {"start_logits", "end_logits"}


def test_multiple_choice_has_one_answer_per_question() -> None:
    ids = np.arange(24).reshape(2, 3, 4)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    report = compare(gives(logits=np.eye(2, 3)), gives(logits=np.eye(2, 3)[::-1]), [feeds], "multiple-choice", [0, 1])
    assert (report["samples"], report["agreement"]) == (2, 0)
    assert report["metric"] == {"name": "accuracy", "fp32": 1, "int8": 0, "drop_points": 100}


def test_where_there_is_no_metric_the_reason_is_given() -> None:
    one = gives(logits=[[0.5], [2.0]])
    report = compare(one, one, [batch()], "text-classification", labels=[0, 3])
    assert report["metric"] is None and report["agreement"] is None and "regression" in report["metric_reason"]
    one = gives(sentence_embedding=np.ones((2, 3)))
    report = compare(one, one, [batch()], "feature-extraction", labels=[0, 1])
    assert report["metric"] is None and report["metric_reason"] == "labels are not used for feature-extraction"


def test_progress_follows_the_batches() -> None:
    seen: list[tuple[int, int]] = []
    runner = gives(logits=np.eye(2))
    compare(runner, runner, [batch()] * 3, "text-classification", progress=lambda *done: seen.append(done))
    assert seen == [(1, 3), (2, 3), (3, 3)]


# Refusals


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_names_output_and_batch(value: float) -> None:
    good = np.eye(2, dtype=np.float32)
    results = iter([good, np.full_like(good, value)])
    with pytest.raises(ParityError, match="batch 1: output 'logits' of the engine holds NaN or Inf"):
        compare(gives(logits=good), lambda feeds: {"logits": next(results)}, [batch()] * 2, "text-classification")


@pytest.mark.parametrize(
    ("task", "candidate", "message"),
    [
        (
            "text-classification",
            {"logits": np.ones((2, 3))},
            r"'logits' has shape \[2, 3\] from the engine and \[2, 2\]",
        ),
        ("text-classification", {"scores": np.ones((2, 2))}, r"the engine returns \['scores'\]"),
        ("question-answering", {"logits": np.ones((2, 2))}, "question-answering needs output 'start_logits'"),
    ],
)
def test_different_interfaces_are_refused(task: str, candidate: dict[str, Any], message: str) -> None:
    with pytest.raises(ParityError, match=message):
        compare(gives(logits=np.ones((2, 2))), gives(**candidate), [batch()], task)


def test_outputs_that_do_not_match_the_batch_are_refused() -> None:
    runner = gives(logits=np.ones((3, 2)))
    with pytest.raises(ParityError, match="for 2 texts"):
        compare(runner, runner, [batch()], "text-classification")
    runner = gives(logits=np.ones((2, 5, 2)))
    with pytest.raises(ParityError, match=r"attention_mask, \[2, 4\]"):
        compare(runner, runner, [batch()], "token-classification")


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0], "1 labels for 2 texts"), ([0, 2], "label 2 of text 1 is out of range"), ([-1, 0], "label -1 of text 0")],
)
def test_unusable_labels_are_data_errors(labels: list[int], message: str) -> None:
    runner = gives(logits=np.eye(2))
    with pytest.raises(DataError, match=message):
        compare(runner, runner, [batch()], "text-classification", labels=labels)


def test_nothing_to_compare_and_unknown_tasks_are_refused() -> None:
    runner = gives(logits=np.eye(2))
    with pytest.raises(DataError, match="no text to compare"):
        compare(runner, runner, [], "text-classification")
    with pytest.raises(DataError, match="a text without tokens"):
        compare(runner, runner, [batch((4, 0))], "text-classification")
    with pytest.raises(ConfigError, match="did you mean 'text-classification'"):
        compare(runner, runner, [batch()], "text-clasification")


# The screen


def test_summary_is_two_to_four_short_lines() -> None:
    reference, candidate = gives(logits=[[2, 1], [0, 3]]), gives(logits=[[1, 2], [0, 3]])
    report = compare(reference, candidate, [batch()], "text-classification", labels=[0, 1])
    assert relate(report).splitlines() == [
        "cosine to FP32 0.9000 mean, 0.8000 worst, over 2 texts",
        "outputs differ by 0.5 on average, 1 at most",
        "same answer as FP32 for 50.00% of 2 texts",
        "accuracy 1.0000 in FP32, 0.5000 in the engine: 50.00 points lower",
    ]
    same = gives(sentence_embedding=np.ones((2, 3)))
    report = compare(same, same, [batch()], "feature-extraction")
    assert len(relate(report).splitlines()) == 2
    huge = {**report, "mean_abs_error": 1.23456e-17, "max_abs_error": 3.4e38, "samples": 10**9}
    assert max(map(len, relate(huge).splitlines())) <= 80


def test_prompts_agree_by_the_tokens_they_mark() -> None:
    """One answer per prompt is all of its marks; the cosine is that of logits, where small probabilities count."""
    start, end = np.full((2, 4), 1e-3), np.full((2, 4), 1e-3)
    start[0, 1] = end[0, 2] = 0.9
    other = start.copy()
    other[0, 1] = 0.51  # still a mark
    report = compare(gives(start_prob=start, end_prob=end), gives(start_prob=other, end_prob=end), [batch()], PROMPTS)
    assert (report["agreement"], report["agreement_of"], report["agreement_unit"]) == (1.0, 2, "prompt")
    assert 0.9 < report["cosine_min"] < 1 and report["logit_mse"] is None
    other[0, 1], other[1, 3] = 0.49, 0.9  # no mark any more; the other one is in padding
    report = compare(gives(start_prob=start, end_prob=end), gives(start_prob=other, end_prob=end), [batch()], PROMPTS)
    assert report["agreement"] == 0.5
    with pytest.raises(ParityError, match="needs output 'start_prob'"):
        compare(gives(logits=start), gives(logits=start), [batch()], PROMPTS)
