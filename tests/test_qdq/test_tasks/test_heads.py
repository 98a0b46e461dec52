"""Multi-label models and models of scores: read from config.json, scored, predicted and compared by their own rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch.utils.data import default_collate

from engines.compare import Reading, compare, relate
from qdq.compress.datasets import Batches
from qdq.compress.evaluators import label_set_metrics
from qdq.errors import DataError, ModelError
from qdq.loading.model import load_model
from qdq.loading.runner import TorchRunner
from qdq.tasks.heads import Head, head_of
from qdq.tasks.loading import EvaluationSettings, load_evaluation
from qdq.tasks.metrics import binary, correlation, multi_label

CLASSES = ("toxic", "obscene", "threat")
NAMED = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: n for n, name in enumerate(CLASSES)}}
MULTI = {"problem_type": "multi_label_classification", **NAMED}


@pytest.mark.parametrize(
    ("config", "classes", "kind", "activation"),
    [
        ({}, 2, "classes", "softmax"),
        ({"problem_type": "single_label_classification"}, 3, "classes", "softmax"),
        ({"problem_type": "multi_label_classification"}, 3, "multi-label", "sigmoid"),
        ({"problem_type": "multi_label_classification"}, 1, "multi-label", "sigmoid"),
        ({}, 1, "scores", "identity"),
        ({"problem_type": "regression"}, 2, "scores", "identity"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, 1, "scores", "sigmoid"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, 1, "scores", "identity"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.GELU"}}, 1, "scores", "identity"),
    ],
)
def test_the_config_says_how_logits_are_read(config: dict[str, Any], classes: int, kind: str, activation: str) -> None:
    head = head_of(config, classes)
    assert (head.kind, head.activation) == (kind, activation)


def test_an_activation_that_is_not_known_is_named_and_not_applied() -> None:
    head = Head("scores", "gelu")
    assert head.read(np.array([2.0])).tolist() == [2.0]
    assert "asks for the activation gelu, which is not applied" in head.notes[0]


def test_large_logits_do_not_overflow() -> None:
    with np.errstate(over="raise", invalid="raise"):
        assert Head("multi-label").read(np.array([-800.0, 0.0, 800.0])).tolist() == [0.0, 0.5, 1.0]


def test_label_sets_are_scored_as_scikit_learn_does() -> None:
    chance = np.random.default_rng(1)
    guess, gold = (chance.random((40, 4)) < share for share in (0.4, 0.3))
    guess[:, 3] = gold[:, 3] = False  # a class that occurs nowhere counts 0
    found = {name: metric() for name, metric in multi_label(guess, gold).items()}
    for average in ("micro", "macro"):
        assert found[f"{average}_f1"] == pytest.approx(
            sklearn_metrics.f1_score(gold, guess, average=average, zero_division=0)
        )
    assert found["exact_match"] == pytest.approx(sklearn_metrics.accuracy_score(gold, guess))


def test_probabilities_of_one_class_are_scored_as_scikit_learn_does() -> None:
    chance = np.random.default_rng(2)
    scores, gold = np.round(chance.random(60), 1), (chance.random(60) < 0.4).astype(float)
    found = {name: metric() for name, metric in binary(scores, gold).items()}
    assert found["average_precision"] == pytest.approx(sklearn_metrics.average_precision_score(gold, scores))
    assert found["f1"] == pytest.approx(sklearn_metrics.f1_score(gold, scores > 0.5))


def test_an_error_keeps_its_own_unit() -> None:
    one = correlation(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))["mse"]
    assert one() == pytest.approx(1 / 3)
    assert one.error


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_multi_label_model_answers_with_sets(tiny_checkpoint: Any, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_checkpoint("bert", num_hidden_layers=1, **MULTI)))
    texts = ("the cat finds a warm meal .", "a small dog", "every good engine never leaves the new city")
    rows = [{"text": text, "labels": []} for text in texts]
    runner = TorchRunner(loaded.module())
    first = load_evaluation(lines(tmp_path / "a.jsonl", rows), loaded).score(runner)
    assert first.values["micro_f1"] == 0
    for answer in first.answers:
        assert answer["labels"] == [name for name in CLASSES if answer["probabilities"][name] > 0.5]
    found = [{"text": text, "labels": answer["labels"]} for text, answer in zip(texts, first.answers, strict=True)]
    evaluation = load_evaluation(lines(tmp_path / "b.jsonl", found), loaded)
    assert evaluation.compared_as == "multi-label-classification"
    assert evaluation.score(runner).values["exact_match"] == 1


def test_a_column_per_class_is_gold_without_any_label(tiny_checkpoint: Any, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_checkpoint("bert", num_hidden_layers=1, **MULTI)))
    data = tmp_path / "columns.csv"
    data.write_text("id,text,toxic,Obscene,threat\nr0,a small dog,0,1,0\nr1,the cat finds a meal,1,0,1\n")
    assert load_evaluation(str(data), loaded).score(TorchRunner(loaded.module())).main == "micro_f1"
    # Other 0/1 columns are no labels; those of some of the classes are not enough.
    data.write_text("id,text,seen,Obscene,threat\nr0,a small dog,0,1,0\nr1,the cat finds a meal,1,0,1\n")
    with pytest.raises(DataError, match=r"no 0/1 column for the class 'toxic'.*a 0/1 column for each class"):
        load_evaluation(str(data), loaded, EvaluationSettings(required=True))
    data.write_text("id,text,seen\nr0,a small dog,0\nr1,the cat finds a meal,1\n")
    assert "none of the 2 texts has a label" in load_evaluation(str(data), loaded).reason


@pytest.mark.parametrize(
    ("written", "thresholds"),
    [
        ({}, (0.5,)),
        ({"threshold": 0.3}, (0.3,)),
        ({"thresholds": [0.2, 0.5, 0.8]}, (0.2, 0.5, 0.8)),
        ({"thresholds": {"threat": 0.8, "toxic": 0.2, "obscene": 0.5}}, (0.2, 0.5, 0.8)),
    ],
)
def test_the_config_says_from_where_a_class_counts(written: dict[str, Any], thresholds: tuple[float, ...]) -> None:
    head = head_of({**MULTI, **written}, 3)
    assert head.thresholds == thresholds
    for logit, probability in zip(head.cuts, thresholds, strict=True):
        assert Head("multi-label").read(np.array(logit)) == pytest.approx(probability)
    assert head_of({**NAMED, **written}, 3).cuts == ()  # one class per text: the largest, whatever its probability


@pytest.mark.parametrize("value", [0, 1, 50, True, "0.5", [0.5, 0.5], {"toxic": 0.5}, [0.5, None, 0.5]])
def test_a_threshold_that_is_none_is_refused_with_its_value(value: Any) -> None:
    with pytest.raises(ModelError, match=r"config\.json: threshold is .*; give one probability between 0 and 1"):
        head_of({**MULTI, "threshold": value}, 3)


def test_everything_that_reads_a_multi_label_model_takes_its_threshold(
    tiny_checkpoint: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Predictions, metrics, agreement, and the checkpoint that later stages and the scripts in examples/ read."""
    path = lines(tmp_path / "a.jsonl", [{"text": "the cat finds a warm meal .", "labels": []}])
    plain = load_model(str(tiny_checkpoint("bert", num_hidden_layers=1, **MULTI)))
    (answer,) = load_evaluation(path, plain).score(TorchRunner(plain.module())).answers
    first = answer["probabilities"][CLASSES[0]]
    for share, counts in ((0.99, True), (1.01, False)):
        asked = {**MULTI, "thresholds": [first * share, 0.999, 0.999]}
        loaded = load_model(str(tiny_checkpoint("bert", num_hidden_layers=1, **asked)))
        evaluation = load_evaluation(path, loaded)
        scores = evaluation.score(TorchRunner(loaded.module()))
        assert (scores.answers[0]["labels"] == [CLASSES[0]]) == counts
        assert scores.values["exact_match"] == (0 if counts else 1)
        sample = {name: array[0] for name, array in evaluation.feeds[0].items()} | {"labels": np.zeros(3, np.float32)}
        batches = Batches([sample], default_collate, 1, torch.device("cpu"))
        assert label_set_metrics(loaded.model, batches)["exact_match"] == (0 if counts else 1)
        loaded.model.config.save_pretrained(tmp_path / "saved")
        again = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
        assert head_of(again, 3).cuts == evaluation.cuts
    assert "thresholds" not in caplog.text  # not among the keys that nobody reads


def test_a_reranker_is_scored_behind_its_activation(tiny_checkpoint: Any, tmp_path: Path) -> None:
    asked = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    folder = tiny_checkpoint("bert", num_hidden_layers=1, num_labels=1, sentence_transformers=asked)
    loaded = load_model(str(folder))
    rows = [{"query": "a cat", "passage": "the dog " * n, "label": n % 2} for n in range(1, 6)]
    evaluation = load_evaluation(lines(tmp_path / "a.jsonl", rows), loaded)
    scores = evaluation.score(TorchRunner(loaded.module()))
    assert list(scores.values) == [
        *("pearson", "spearman", "pearson_spearman", "mse"),
        *("accuracy", "f1", "average_precision"),
    ]
    assert all(0 < answer["score"] < 1 for answer in scores.answers)
    assert "config.json asks for sigmoid behind the logit" in evaluation.notes[0]


def test_single_numbers_are_compared_by_correlation() -> None:
    feeds = [{"input_ids": np.ones((4, 2)), "attention_mask": np.ones((4, 2))}]
    outputs = [np.array([[1.0], [2.0], [3.0], [5.0]]), np.array([[1.1], [2.0], [2.5], [6.0]])]
    report = compare(lambda _: {"logits": outputs[0]}, lambda _: {"logits": outputs[1]}, feeds, "text-classification")
    assert report["cosine_mean"] is None and report["cosine_min"] is None
    assert report["pearson"] == pytest.approx(np.corrcoef(outputs[0][:, 0], outputs[1][:, 0])[0, 1])
    assert report["spearman"] == pytest.approx(1)
    text = relate(report | {"activation": "sigmoid"})
    assert "Pearson to FP32 0.9730" in text and "cosine" not in text
    assert "config.json asks for sigmoid" in text
    same = compare(lambda _: {"logits": outputs[0] * 0}, lambda _: {"logits": outputs[1]}, feeds, "regression")
    assert same["pearson"] is None and "no correlation" in relate(same)


def test_agreement_of_a_multi_label_model_counts_every_class() -> None:
    feeds = [{"input_ids": np.ones((2, 2)), "attention_mask": np.ones((2, 2))}]
    one, other = np.array([[2.0, 1.0, -1.0], [-1.0, -2.0, 3.0]]), np.array([[1.0, -0.1, -1.0], [-3.0, -2.0, 3.0]])
    report = compare(lambda _: {"logits": one}, lambda _: {"logits": other}, feeds, "multi-label-classification")
    assert (report["agreement"], report["agreement_of"], report["agreement_unit"]) == (5 / 6, 6, "label")
    above = Reading("multi-label-classification", (0.0, -0.5, 0.0))
    assert compare(lambda _: {"logits": one}, lambda _: {"logits": other}, feeds, above)["agreement"] == 1
