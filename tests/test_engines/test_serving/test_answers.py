"""Outputs of an engine as answers, task by task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.serving.answers import answer, outputs_of, runs_of
from engines.serving.tokens import Text, Tokenizer
from qdq.loading.kinds import TASKS

QA = "question-answering"


def ask(file: Path, form: Any, text: Text, row: dict[str, Any], **asked: Any) -> dict[str, Any]:
    tokens = Tokenizer(file, form).encode([text])
    arrays = {name: np.array(values, np.float32) for name, values in row.items()}
    return answer(form, tokens, [arrays], asked.get("dimensions"), asked.get("large", False))  # type: ignore[arg-type]


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_has_outputs_and_says_how_many_tokens_it_used(form: Any, task: str) -> None:
    names = [output.name for output in outputs_of(form(task=task))]
    assert names[-2:] == ["TOKENS", "CUT"] and len(names) > 2


def test_a_class_with_its_probability(tokenizer_file: Path, form: Any) -> None:
    found = ask(tokenizer_file, form(), Text("the cat", None, ""), {"logits": [0.0, np.log(3)]})
    assert (found["LABEL"], round(float(found["SCORE"]), 6), found["TOKENS"], found["CUT"]) == ("yes", 0.75, 4, 0)
    assert found["PROBABILITIES"] == pytest.approx([0.25, 0.75])


def test_classes_above_their_own_thresholds(tokenizer_file: Path, form: Any) -> None:
    several = form(head="multi-label", thresholds=(0.2, 0.9))
    found = ask(tokenizer_file, several, Text("the cat", None, ""), {"logits": [0.0, 0.0]})
    assert json.loads(found["LABELS"]) == [{"label": "no", "score": 0.5}]


@pytest.mark.parametrize(("activation", "score"), [("identity", 2.0), ("sigmoid", 0.880797), ("tanh", 0.964028)])
def test_a_score_behind_the_models_own_activation(
    tokenizer_file: Path, form: Any, activation: str, score: float
) -> None:
    scores = form(head="scores", activation=activation, labels=())
    found = ask(tokenizer_file, scores, Text("the cat", "a dog", ""), {"logits": [2.0]})
    assert found["SCORE"] == pytest.approx([score], abs=1e-6)
    assert found["LOGITS"] == pytest.approx([2.0])


def test_entities_are_words_of_the_text_with_their_characters(tokenizer_file: Path, form: Any) -> None:
    """A word has the class of its first token: "cats" is two tokens, the second of another class."""
    tags = form(task="token-classification", labels=("O", "B-LOC", "I-LOC", "B-PER"), sequence=12)
    text = "Anna sees  New York, cats"
    classes = [0, 3, 0, 1, 2, 0, 0, 3, 0]  # [CLS] anna sees new york [UNK: ,] cat ##s [SEP]
    found = ask(tokenizer_file, tags, Text(text, None, ""), {"logits": 9.0 * np.eye(4)[classes]})
    entities = json.loads(found["ENTITIES"])
    assert [(item["entity"], item["word"], item["start"], item["end"]) for item in entities] == [
        ("PER", "Anna", 0, 4),
        ("LOC", "New York", 11, 19),
    ]
    assert all(text[item["start"] : item["end"]] == item["word"] and item["score"] > 0.99 for item in entities)


def test_classes_that_are_no_tags_come_word_by_word(tokenizer_file: Path, form: Any) -> None:
    tags = form(task="token-classification", labels=("DET", "NOUN"), entities=False)
    found = ask(tokenizer_file, tags, Text("the cats", None, ""), {"logits": np.eye(2)[[0, 0, 1, 0, 0]]})
    assert [(item["entity"], item["word"]) for item in json.loads(found["ENTITIES"])] == [
        ("DET", "the"),
        ("NOUN", "cats"),
    ]


def test_an_answer_is_a_part_of_the_context(tokenizer_file: Path, form: Any) -> None:
    """The largest logits lie in the question and on [SEP], where no answer can be."""
    asks = form(task=QA, outputs=("start_logits", "end_logits"), sequence=16)
    text = Text("the cat", "Anna sees a  small dog", "")  # [CLS] the cat [SEP] anna sees a small dog [SEP]
    start, end = [9, 9, 0, 0, 0, 0, 3, 0, 0, 0], [9, 0, 9, 0, 0, 0, 0, 0, 3, 9]
    found = ask(tokenizer_file, asks, text, {"start_logits": start, "end_logits": end}, large=True)
    assert (found["ANSWER"], found["START"], found["END"]) == ("a  small dog", 10, 22)
    share = np.exp(3) / (np.exp(3) + 4)
    assert found["SCORE"] == pytest.approx(share * share)
    assert found["START_LOGITS"].tolist() == start


def test_a_choice(tokenizer_file: Path, form: Any) -> None:
    found = ask(tokenizer_file, form(task="multiple-choice"), Text("a", "cat", ""), {"logits": [0.0, np.log(3)]})
    assert (found["CHOICE"], float(found["SCORE"])) == (1, pytest.approx(0.75))


def test_token_states_become_one_embedding_of_length_one(tokenizer_file: Path, form: Any) -> None:
    states = form(task="feature-extraction", outputs=("last_hidden_state",), pooled=False, dimensions=(1, 2))
    row = {"last_hidden_state": [[3.0, 0.0, 0.0], [3.0, 8.0, 0.0], [3.0, 4.0, 0.0]]}
    found = ask(tokenizer_file, states, Text("cat", None, ""), row)
    assert found["EMBEDDING"] == pytest.approx([0.6, 0.8, 0.0])
    short = ask(tokenizer_file, states, Text("cat", None, ""), row, dimensions=1)
    assert short["EMBEDDING"] == pytest.approx([1.0])


def test_masked_places_are_filled(tokenizer_file: Path, form: Any) -> None:
    fills = form(task="fill-mask", mask=4)
    logits = np.zeros((5, 19))
    logits[2, 6] = 5.0
    found = ask(tokenizer_file, fills, Text("the [MASK] sees", None, ""), {"logits": logits})
    ((best, *_others),) = json.loads(found["PREDICTIONS"])
    assert best["token"] == "cat"
    assert len(_others) == 4 and "LOGITS" not in found


def test_answers_to_a_prompt_are_characters_of_the_context(tokenizer_file: Path, form: Any) -> None:
    """As `qdq.tasks.spans` pairs them: each start with the next end; marks of the prompt are no answers."""
    asked = form(task="information-extraction", outputs=("start_prob", "end_prob"), sequence=16)
    text = Text("the dog", "Anna sees  New York", "")  # [CLS] the dog [SEP] anna sees new york [SEP]
    row = {"start_prob": [0, 0.9, 0, 0, 0.8, 0, 0.6, 0, 0], "end_prob": [0, 0, 0.9, 0, 0.9, 0, 0, 0.7, 0]}
    found = ask(tokenizer_file, asked, text, row)
    assert json.loads(found["SPANS"]) == [
        {"text": "Anna", "start": 0, "end": 4, "probability": 0.72},
        {"text": "New York", "start": 11, "end": 19, "probability": 0.42},
    ]
    assert "START_PROB" not in found and len(ask(tokenizer_file, asked, text, row, large=True)["START_PROB"]) == 9


def test_of_a_choice_the_likeliest_option_is_the_answer(tokenizer_file: Path, form: Any) -> None:
    asked = form(task="information-extraction", outputs=("start_prob", "end_prob"), sequence=16)
    text = Text("the[small,new]", "a cat", "")  # [CLS] the [ small , new ] [SEP] a cat [SEP]
    marks = np.zeros(11)
    marks[[3, 5, 9]] = 0.6, 0.7, 0.9
    found = ask(tokenizer_file, asked, text, {"start_prob": marks, "end_prob": marks})
    assert json.loads(found["SPANS"]) == [{"text": "new", "probability": 0.49}]


def test_of_several_windows_the_best_one_answers(tokenizer_file: Path, form: Any) -> None:
    """A context that is too long is read in windows that overlap, as `qdq evaluate` reads it."""
    shape = form(task=QA, outputs=("start_logits", "end_logits"), sequence=8)
    context = "the cat sees a small dog in new york"
    (tokens,) = Tokenizer(tokenizer_file, shape).encode([Text("anna", context, "")])
    runs = runs_of([tokens])  # type: ignore[list-item]  # no fault
    assert [window.encoding.offsets[3] for (window,) in runs] == [(0, 3), (8, 12), (15, 20), (25, 27)]
    rows = [{name: np.zeros(len(window)) for name in shape.outputs} for (window,) in runs]
    for name in shape.outputs:
        rows[0][name][4], rows[3][name][5] = 3.0, 4.0  # "cat", and the better "york"
    found = answer(shape, [tokens], rows, None, True)  # type: ignore[list-item]
    assert (found["ANSWER"], found["START"], found["END"], found["CUT"]) == ("york", 32, 36, 0)
    assert found["TOKENS"] == sum(len(window) for (window,) in runs)
    assert found["START_LOGITS"].max() == 4.0  # of the window with the answer
