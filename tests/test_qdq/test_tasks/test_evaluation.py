"""From labelled files to scores: every kind of file, every bad label, and the runner's side of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdq.errors import ConfigError, DataError, ParityError
from qdq.loading.model import LoadedModel, load_model
from qdq.loading.runner import TorchRunner
from qdq.tasks.evaluation import Evaluation
from qdq.tasks.extraction import best_span, windows
from qdq.tasks.loading import EvaluationSettings, evaluation_of, load_evaluation
from qdq.tasks.problems import Similarity
from qdq.text.data import Record, TextSource

SHARED = Path(__file__).resolve().parents[4] / "shared"
REQUIRED = EvaluationSettings(required=True)


def oracle(evaluation: Evaluation, answers: Mapping[str, Any], tokens: bool = False) -> Any:
    """A runner that gives row n of the data the n-th of `answers`, cut to the feed's width when they are per token."""
    calls = iter([order for _, order in evaluation.batches])

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        rows, width = list(next(calls)), feeds["input_ids"].shape[1]
        chosen = {name: np.asarray(values, dtype=np.float32)[rows] for name, values in answers.items()}
        return {name: array[:, :width] if tokens else array for name, array in chosen.items()}

    return run


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Any) -> LoadedModel:
    return load_model(str(tiny_checkpoint()))


def test_rows_are_scored_whatever_batch_they_are_in(classifier: LoadedModel) -> None:
    records = [Record("the cat sees " * n, label=str(n % 2)) for n in range(1, 8)]
    logits = np.eye(2)[[1, 0, 0, 0, 1, 0, 1]]  # wrong for the third of seven
    for batch in (1, 3, 7):
        evaluation = evaluation_of(records, classifier, EvaluationSettings(batch=batch))
        scores = evaluation.score(oracle(evaluation, {"logits": logits}))
        assert scores.value == scores.values["accuracy"] == pytest.approx(6 / 7)
        assert [answer["label"] for answer in scores.answers][:3] == [classifier.labels[n] for n in (1, 0, 0)]


def test_a_torch_model_scores_as_its_own_answers_say(classifier: LoadedModel) -> None:
    texts = ("the cat finds a warm meal .", "a small dog", "every good engine never leaves the new city")
    runner = TorchRunner(classifier.module())
    first = evaluation_of([Record(text, label="0") for text in texts], classifier).score(runner)
    named = [Record(text, label=answer["label"]) for text, answer in zip(texts, first.answers, strict=True)]
    again = evaluation_of(named, classifier).score(runner)
    assert again.value == 1
    assert again.difference(again)["accuracy"].difference == 0


CLUE = {
    "ocnli": ({"sentence1": "a", "sentence2": "b", "label": "-"}, {"sentence1": "c", "sentence2": "d", "label": "1"}),
    "csl": ({"abst": "a cat", "keyword": ["dog", "city"], "label": "1"},),
    "cluewsc2020": (
        {
            "target": {"span1_text": "cat", "span1_index": 4, "span2_text": "it", "span2_index": 13},
            "text": "the cat sees it",
            "label": "true",
        },
    ),
}


@pytest.mark.document_row("000/8")
@pytest.mark.parametrize(
    ("name", "text", "pair", "label"),
    [("ocnli", "c", "d", "1"), ("csl", "dog city", "a cat", "1"), ("cluewsc2020", "the _cat_ sees [it]", None, "true")],
)
def test_clue_layouts_become_texts_and_labels(
    tmp_path: Path, classifier: LoadedModel, name: str, text: str, pair: str | None, label: str
) -> None:
    path = write(tmp_path / f"{name}.json", "".join(json.dumps(row) + "\n" for row in CLUE[name]))
    evaluation = load_evaluation(path, classifier, REQUIRED)
    used = evaluation.problem._records[0]  # type: ignore[attr-defined]
    assert (used.text, used.pair, used.label) == (text, pair, label)
    assert evaluation.samples == 1 and evaluation.labelled
    order = "the model does not name its classes; they are true, false, as the data or --labels number them"
    notes = {"ocnli": ("1 rows without consensus ('-') left out",), "cluewsc2020": (order,)}
    assert evaluation.notes == notes.get(name, ())


def test_a_moved_target_is_named(tmp_path: Path, classifier: LoadedModel) -> None:
    row = json.loads(json.dumps(CLUE["cluewsc2020"][0]))
    row["target"]["span1_index"] = 5
    with pytest.raises(DataError, match="line 1: 'cat' does not stand at character 5"):
        load_evaluation(write(tmp_path / "a.json", json.dumps(row) + "\n"), classifier)


def test_tnews_codes_are_classes_of_an_unnamed_model(tiny_checkpoint: Any) -> None:
    loaded = load_model(str(tiny_checkpoint(num_labels=15)))
    records = [Record("the cat", label="100"), Record("the dog", label="116", label_name="news_game")]
    evaluation = evaluation_of(records, loaded, REQUIRED)
    assert evaluation.score(oracle(evaluation, {"logits": np.eye(15)[[0, 14]]})).value == 1


@pytest.mark.parametrize(
    ("label", "message"),
    [("7", "has label '7', unknown to the model"), (None, "evaluation text 2 has no label")],
)
def test_missing_or_unknown_labels_are_errors_or_reasons(
    classifier: LoadedModel, label: str | None, message: str
) -> None:
    records = [Record("the cat", label="1"), Record("a dog", label=label)]
    with pytest.raises(DataError, match=message):
        evaluation_of(records, classifier, REQUIRED)
    unscored = evaluation_of(records, classifier)
    assert not unscored.labelled and message in unscored.reason
    assert unscored.score(TorchRunner(classifier.module())).values == {}


def test_a_metric_that_does_not_fit_names_those_that_do(classifier: LoadedModel) -> None:
    records = [Record("the cat", label="1")]
    with pytest.raises(ConfigError, match=r"--metric for text-classification.*did you mean 'f1'.*accuracy_f1"):
        evaluation_of(records, classifier, EvaluationSettings(metric="f2"))
    with pytest.raises(ConfigError, match="none of the 1 texts has a label"):
        evaluation_of([Record("the cat")], classifier, EvaluationSettings(metric="f1"))
    assert evaluation_of(records, classifier, EvaluationSettings(metric="f1")).problem.main == "f1"


def test_nan_logits_are_refused(classifier: LoadedModel) -> None:
    evaluation = evaluation_of([Record("the cat", label="1")], classifier)
    with pytest.raises(ParityError, match="batch 0: output 'logits' holds NaN"):
        evaluation.score(lambda feeds: {"logits": np.full((1, 2), np.nan, dtype=np.float32)})


def test_one_logit_is_scored_by_correlation(tiny_checkpoint: Any) -> None:
    loaded = load_model(str(tiny_checkpoint(num_labels=1)))
    records = [Record("the cat", "a dog", label=score) for score in ("0.5", "3", "4.5")]
    evaluation = evaluation_of(records, loaded, REQUIRED)
    found = evaluation.score(oracle(evaluation, {"logits": np.array([[0.0], [1.0], [9.0]])})).values
    assert found["spearman"] == pytest.approx(1) and found["pearson"] == pytest.approx(
        np.corrcoef([0.5, 3, 4.5], [0, 1, 9])[0, 1]
    )
    with pytest.raises(DataError, match="evaluation text 1 has label 'x', which is no number"):
        evaluation_of([Record("the cat", label="x")], loaded, REQUIRED)


def test_pairs_with_a_score_are_scored_by_the_cosine_of_embeddings(tiny_checkpoint: Any) -> None:
    loaded = load_model(str(tiny_checkpoint(task="feature-extraction")))
    records = [
        Record("the cat", "the cat", label="5"),
        Record("the cat", "a small dog wants this long road", label="1"),
    ]
    evaluation = evaluation_of(records, loaded, REQUIRED)
    scores = evaluation.score(TorchRunner(loaded.module()))
    assert scores.values["spearman"] == pytest.approx(1)
    assert scores.answers[0]["cosine"] == pytest.approx(1) and scores.answers[1]["cosine"] < 0.999


@pytest.mark.parametrize(
    ("similarity", "expected"), [("dot", [2.0, 0.0]), ("euclidean", [-1.0, -(5**0.5)]), ("manhattan", [-1.0, -3.0])]
)
def test_embeddings_are_compared_as_their_files_ask(similarity: str, expected: list[float]) -> None:
    records = [Record("a", "b", label="5"), Record("c", "d", label="1")]
    problem = Similarity(records, np.array([[5.0], [1.0]]), "", similarity)
    sides = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    kept = [problem.keep(row, {"sentence_embedding": vector}) for row, vector in enumerate(sides)]
    assert [answer[similarity] for answer in problem.answers(kept)] == pytest.approx(expected)


# Token classification

CONLL = "the B-LOC\ncat O\n\nour O\nteacher B-PER\nsees O\nthe O\nblue O\nhouse B-LOC\n"


@pytest.fixture(scope="module")
def tagger(tiny_checkpoint: Any) -> LoadedModel:
    names = {0: "O", 1: "B-PER", 2: "B-LOC"}
    return load_model(str(tiny_checkpoint(task="token-classification", num_labels=3, id2label=names)))


def test_words_are_tagged_by_their_first_token(tmp_path: Path, tagger: LoadedModel) -> None:
    """'cat's' is three tokens of the tiny tokenizer, so its neighbours' places shift."""
    path = write(tmp_path / "valid.txt", "cat's B-LOC\ndog O\nengine B-PER\n")
    evaluation = load_evaluation(path, tagger, REQUIRED)
    logits = np.zeros((1, 7, 3))  # [CLS] cat ' s dog engine [SEP]
    logits[0, [1, 2, 3, 4, 5], [2, 1, 1, 0, 1]] = 1  # the wrong classes of ' and s must not count
    scores = evaluation.score(oracle(evaluation, {"logits": logits}, tokens=True))
    assert scores.value == 1
    assert scores.answers[0]["tags"] == ["B-LOC", "O", "B-PER"]


def test_truncated_words_count_as_outside_and_are_said(tmp_path: Path, tagger: LoadedModel) -> None:
    path = write(tmp_path / "valid.txt", CONLL)
    evaluation = load_evaluation(path, tagger, EvaluationSettings(sequence=6))
    assert evaluation.notes == ("2 of 8 words in 1 of 2 texts are cut off and count as O",)
    scores = evaluation.score(TorchRunner(tagger.module()))
    assert scores.answers[1]["tags"][4:] == ["O", "O"]


@pytest.mark.parametrize(
    ("tag", "message"), [("B-ORG", "tag 'B-ORG', unknown to the model"), ("", "no tag for its word 'cat'")]
)
def test_bad_tags_are_named(tagger: LoadedModel, tag: str, message: str) -> None:
    records = [Record("the cat", words=("the", "cat"), tags=("B-LOC", tag))]
    with pytest.raises(DataError, match=message):
        evaluation_of(records, tagger, REQUIRED)
    assert message in evaluation_of(records, tagger).reason


def test_tokens_and_tags_of_json_lines_are_read(tmp_path: Path, tagger: LoadedModel) -> None:
    row = {"tokens": ["the", "cat"], "ner_tags": ["B-LOC", "O"]}
    evaluation = load_evaluation(write(tmp_path / "a.jsonl", json.dumps(row) + "\n"), tagger, REQUIRED)
    assert evaluation.labelled and evaluation.samples == 1


# Question answering


@pytest.fixture(scope="module")
def reader(tiny_checkpoint: Any) -> LoadedModel:
    return load_model(str(tiny_checkpoint(task="question-answering")))


CONTEXT = "the cat finds the blue house . a small dog likes a warm meal . our teacher sees some fresh bread ."


def squad(answers: Any, question: str = "our teacher sees") -> dict[str, Any]:
    qas = [{"id": "q", "question": question, **({} if answers is None else {"answers": answers})}]
    return {"data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": qas}]}]}


def test_windows_cover_the_context_and_share_the_overlap(reader: LoadedModel) -> None:
    parts = windows(reader.tokenizer, [Record("the cat", CONTEXT)], 16, 4, True)
    covered = [{offset for offset in part.offsets if offset} for part in parts]
    assert len(parts) > 1 and all(len(one & other) == 4 for one, other in itertools.pairwise(covered))
    texts = {CONTEXT[slice(*offset)] for offsets in covered for offset in offsets}
    assert texts == set(CONTEXT.split())
    assert len(windows(reader.tokenizer, [Record("the cat", CONTEXT)], 16, -1, True)) == 1


def test_the_best_span_is_the_exact_maximum(reader: LoadedModel) -> None:
    part = windows(reader.tokenizer, [Record("the cat", CONTEXT)], 32, -1, True)[0]
    generator, size = np.random.default_rng(3), len(part.offsets)
    for longest in (1, 4, 30):
        start, end = generator.normal(size=size), generator.normal(size=size)
        span = best_span(part, {"start_logits": start, "end_logits": end}, longest)
        places = [index for index, offset in enumerate(part.offsets) if offset]
        assert span.score == pytest.approx(
            max(start[i] + end[j] for i in places for j in places if i <= j < i + longest)
        )


def test_answers_are_found_in_the_right_window_and_scored(tmp_path: Path, reader: LoadedModel) -> None:
    path = write(tmp_path / "dev.json", json.dumps(squad([{"text": "fresh bread", "answer_start": 80}])))
    evaluation = load_evaluation(path, reader, EvaluationSettings(sequence=16, overlap=4))
    parts = evaluation.problem._windows  # type: ignore[attr-defined]
    width = max(len(part.offsets) for part in parts)
    start, end = np.zeros((len(parts), width)), np.zeros((len(parts), width))
    for row, part in enumerate(parts):
        words = [CONTEXT[slice(*offset)] if offset else "" for offset in part.offsets]
        if "bread" in words:
            start[row, words.index("fresh")] = end[row, words.index("bread")] = 5
    scores = evaluation.score(oracle(evaluation, {"start_logits": start, "end_logits": end}, tokens=True))
    assert scores.values == {"exact_match": 1, "f1": 1}
    assert scores.answers == ({"id": "q", "answer": "fresh bread"},)


def test_questions_without_answers_give_predictions_only(tmp_path: Path, reader: LoadedModel) -> None:
    path = write(tmp_path / "test.json", json.dumps(squad(None)))
    evaluation = load_evaluation(path, reader, REQUIRED)
    assert evaluation.reason == "1 of 1 questions have no answers"
    assert evaluation.score(TorchRunner(reader.module())).answers[0]["answer"] in CONTEXT


def test_an_overlap_without_room_to_advance_is_refused(reader: LoadedModel) -> None:
    with pytest.raises(ConfigError, match="--overlap: windows of 16 tokens have room for 11"):
        evaluation_of([Record("the cat", CONTEXT)], reader, EvaluationSettings(sequence=16, overlap=11))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the fine-tuned checkpoints beside the checkout are not here")
@pytest.mark.parametrize(
    ("model", "data", "samples"),
    [
        ("minilm-mrpc", "mrpc/dev.tsv", 64),
        ("minilm-conll", "conll2003/valid.txt", 48),
        ("minilm-squad", "squad/dev-v1.1.json", 16),
    ],
)
def test_fine_tuned_models_score_far_above_chance(model: str, data: str, samples: int) -> None:
    loaded = load_model(str(SHARED / "models" / model))
    settings = EvaluationSettings(sequence=256 if "squad" in model else 128, batch=16, overlap=-1, required=True)
    evaluation = load_evaluation(TextSource(str(SHARED / "data" / data)), loaded, settings, samples)
    assert evaluation.score(TorchRunner(loaded.module())).value > 0.6
