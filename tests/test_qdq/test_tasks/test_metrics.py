"""Metrics against published scorers and hand-computed cases; the bootstrap against what it must show."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from seqeval.metrics import f1_score as seqeval_f1
from sklearn.metrics import f1_score

from qdq.tasks.answers import detect_scoring, score_answer
from qdq.tasks.metrics import classification, correlation, mean_of, paired_difference
from qdq.tasks.tagging import tag_scores

TAGS = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-LOC", "S-PER"])


@pytest.mark.document_row("001/8")
def test_two_classes_give_accuracy_f1_of_class_one_and_their_mean() -> None:
    predicted, gold = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1])
    found = {name: metric() for name, metric in classification(predicted, gold, 2).items()}
    assert found == pytest.approx({"accuracy": 3 / 5, "f1": 2 / 3, "accuracy_f1": (3 / 5 + 2 / 3) / 2})


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_macro_f1_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    predicted, gold = (np.array(side) for side in zip(*pairs, strict=True))
    expected = f1_score(gold, predicted, average="macro", zero_division=0.0)
    assert classification(predicted, gold, 4)["macro_f1"]() == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
@settings(max_examples=40, deadline=None)
def test_correlations_are_scipys_also_with_ties(pairs: list[tuple[int, int]]) -> None:
    predicted, gold = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    found = correlation(predicted, gold)
    if len(set(predicted)) < 2 or len(set(gold)) < 2:
        assert found["pearson"]() == found["spearman"]() == 0
    else:
        assert found["pearson"]() == pytest.approx(stats.pearsonr(predicted, gold).statistic)
        assert found["spearman"]() == pytest.approx(stats.spearmanr(predicted, gold).statistic)


@given(st.lists(st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=8), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore")  # seqeval warns where nothing was predicted
def test_entity_f1_is_seqevals(sentences: list[list[tuple[str, str]]]) -> None:
    predicted = [[tag for tag, _ in sentence] for sentence in sentences]
    gold = [[tag for _, tag in sentence] for sentence in sentences]
    assert tag_scores(predicted, gold, ("O", "B-X"))["f1"]() == pytest.approx(seqeval_f1(gold, predicted))


def test_entities_must_match_in_type_and_borders() -> None:
    gold = [["B-PER", "I-PER", "O"], ["B-LOC", "O", "B-LOC"]]
    predicted = [["B-PER", "O", "O"], ["B-LOC", "O", "B-PER"]]  # one of three found, one border and one type wrong
    found = {name: metric() for name, metric in tag_scores(predicted, gold, ("O", "B-X")).items()}
    assert found == pytest.approx({"f1": 1 / 3, "precision": 1 / 3, "recall": 1 / 3, "token_accuracy": 4 / 6})


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("the Cat.", ["cat"], (1, 1)),  # articles, case and punctuation do not count
        ("in October 1973", ["October 1973", "1973"], (0, 4 / 5)),  # 2 common of 3 and 2
        ("a b c", ["x"], (0, 0)),
        ("", [], (1, 1)),  # SQuAD 2.0: rightly no answer
        ("something", [], (0, 0)),
        ("the", ["an"], (1, 1)),  # both are empty when normalized
    ],
)
def test_squad_answers(prediction: str, answers: list[str], expected: tuple[float, float]) -> None:
    assert score_answer(prediction, answers, "squad") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("光荣和ω-force。", ["光荣和ω-force"], (1, 1)),  # punctuation does not count
        ("光荣和", ["光荣和ω-force"], (0, 2 * 3 / (3 + 4))),  # ω-force is the one word "ωforce"
        ("北京大学", ["北京的大学"], (0, 2 * 2 / (4 + 5))),  # the longest run, not the common characters
        ("1973年", ["1973年10月", "1973"], (0, 2 * 2 / (2 + 4))),
        ("", ["北京"], (0, 0)),
    ],
)
def test_cmrc_answers(prediction: str, answers: list[str], expected: tuple[float, float]) -> None:
    assert score_answer(prediction, answers, "cmrc") == pytest.approx(expected)


def test_the_scorer_follows_the_script_of_the_contexts() -> None:
    assert detect_scoring(["Who was Ada?"]) == "squad"
    assert detect_scoring(["光荣和ω-force开发的战国无双系列"]) == "cmrc"


def test_the_interval_is_of_paired_samples_and_repeats() -> None:
    generator = np.random.default_rng(1)
    right = generator.random(400) < 0.8
    changed = right.copy()
    changed[:4] = ~changed[:4]
    gap = paired_difference(mean_of(changed), mean_of(right))
    assert gap == paired_difference(mean_of(changed), mean_of(right))
    assert gap.difference == pytest.approx(100 * (changed.mean() - right.mean()))
    assert gap.low <= gap.difference <= gap.high
    assert gap.high - gap.low < 2.5  # 4 of 400 differ: unpaired samples of this size would give an interval of 11
    same = paired_difference(mean_of(right), mean_of(right))
    assert (same.difference, same.low, same.high) == (0, 0, 0)


def test_the_interval_has_its_coverage() -> None:
    """The true difference is 10 points; 95 % intervals of 60 independent samples must nearly all hold it."""
    generator, held = np.random.default_rng(2), 0
    for _ in range(60):
        one, other = generator.random(300) < 0.7, generator.random(300) < 0.8
        interval = paired_difference(mean_of(other), mean_of(one), resamples=300)
        held += interval.low <= 10 <= interval.high
    assert held >= 52
