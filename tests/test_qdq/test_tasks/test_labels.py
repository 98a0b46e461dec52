"""Labels as files write them: classes, sets of classes, scores, and tags of other schemes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from qdq.errors import DataError
from qdq.tasks.labels import by_number, class_indices, label_sets, numbers
from qdq.tasks.schemes import Scheme, entities, gold_tags
from qdq.text.data import Record

NAMES = ("negative", "positive")
MANY = ("toxic", "obscene", "threat", "insult")


def labelled(*labels: str | None, **more: object) -> list[Record]:
    return [Record("a", label=label, **more) for label in labels]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (("0.0", "1.0"), NAMES, [0, 1]),  # pandas, once a label was missing
        (("Negative", "POSITIVE"), NAMES, [0, 1]),
        (("false", "true"), NAMES, [0, 1]),
        (("LABEL_1", "LABEL_0"), NAMES, [1, 0]),
        (("1", "0"), ("1", "0"), [0, 1]),  # names that are numbers are names first
        (("true", "false"), ("true", "false"), [0, 1]),
        (("2", "0"), ("LABEL_0", "LABEL_1", "LABEL_2"), [2, 0]),
        (("2", "1."), (), [2, 1]),
    ],
)
def test_classes_by_name_and_number(labels: tuple[str, ...], names: tuple[str, ...], expected: list[int]) -> None:
    assert class_indices(labelled(*labels), names, len(names) or 3, required=True) == (expected, "")


@pytest.mark.parametrize("label", ["2", "-1", "0.5", "good", "1.5", "nan", "١٢"])
def test_what_is_no_class_is_refused(label: str) -> None:
    with pytest.raises(DataError, match="unknown to the model"):
        class_indices(labelled("0", label), NAMES, 2, required=True)


def test_numbers_from_one_are_said() -> None:
    """AG News and star ratings count from 1; the model's classes count from 0."""
    _, reason = class_indices(labelled("1", "3", "2"), (), 3, required=False)
    assert "the file's labels are 1 to 3, and 0 is the first class" in reason
    assert "first class" not in class_indices(labelled("1", "3", "0"), (), 3, required=False)[1]
    assert class_indices(labelled("0", ""), NAMES, 2, required=False)[1] == (
        "evaluation text 2 has no label (it knows negative, positive)"
    )
    assert "test splits" in class_indices(labelled("-1"), NAMES, 2, required=False)[1]


def test_names_of_the_files_numbers_find_the_models_classes() -> None:
    records = [Record("a", label="0", label_name="positive", classes=("positive", "negative"))]
    assert class_indices(records, NAMES, 2, required=True)[0] == [1]  # by name: the file's order is another
    other = [Record("a", label="0", label_name="pos", classes=("pos", "neg"))]
    assert class_indices(other, NAMES, 2, required=True)[0] == [0]
    assert "classes are taken by their numbers: the file calls them pos, neg" in by_number(other, NAMES)
    more = [Record("a", label="0", label_name="joy", classes=("joy", "fear", "anger"))]
    with pytest.raises(DataError, match="unknown to the model"):
        class_indices(more, NAMES, 2, required=True)


def test_a_list_of_labels_for_a_model_of_one_class_names_the_key_of_config() -> None:
    with pytest.raises(DataError, match=r'has a list of 2 labels.*"problem_type": "multi_label_classification"'):
        class_indices([Record("a", labels=("0", "1"))], NAMES, 2, required=True)
    assert class_indices([Record("a", labels=("1",))], NAMES, 2, required=True)[0] == [1]


SETS = {
    "numbers": [Record("a", labels=("0", "3")), Record("b", labels=())],
    "names": [Record("a", labels=("Toxic", "insult")), Record("b", labels=())],
    "multi-hot": [Record("a", labels=("1.0", "0.0", "0.0", "1.0")), Record("b", labels=("0", "0", "0", "0"))],
    "text of names": labelled("toxic|insult", ""),
    "text of numbers": labelled("0,3", ""),
    "JSON as text": labelled("[0, 3]", "[]"),
    "multi-hot as text": labelled("1 0 0 1", "0 0 0 0"),
    "columns": [
        Record("a", flags={"Toxic": True, "obscene": False, "threat": False, "insult": True, "seen": True}),
        Record("b", flags=dict.fromkeys(("Toxic", "obscene", "threat", "insult", "seen"), False)),
    ],
    "one column read as label": [
        Record("a", label="1", flags={"toxic": True, "obscene": False, "threat": False, "insult": True}),
        Record("b", label="0", flags=dict.fromkeys(MANY, False)),
    ],
}


@pytest.mark.parametrize("records", SETS.values(), ids=SETS)
def test_sets_of_classes_in_every_form(records: list[Record]) -> None:
    found, reason = label_sets(records, MANY, 4, required=True)
    assert reason == "" and found is not None
    assert found.astype(int).tolist() == [[1, 0, 0, 1], [0, 0, 0, 0]]


def test_a_single_class_is_a_flag() -> None:
    found = label_sets(labelled("1", "0", "1.0"), ("toxic",), 1, required=True)[0]
    assert found is not None and found.tolist() == [[True], [False], [True]]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([Record("a", labels=("0", "4"))], "has label '4', unknown to the model"),
        (labelled("toxic|rude"), "has label 'toxic|rude', unknown to the model"),
        ([Record("a")], "has no list of labels"),
        ([Record("a", flags={"toxic": True, "threat": False})], "no 0/1 column for the class 'obscene'"),
        (
            [Record("a", flags=dict.fromkeys(MANY, True)), Record("b", flags={"toxic": True})],
            "text 2 has neither 0 nor 1 in its column 'obscene'",
        ),
    ],
)
def test_sets_that_do_not_fit_are_named(records: list[Record], message: str) -> None:
    with pytest.raises(DataError) as caught:
        label_sets(records, MANY, 4, required=True)
    assert message in str(caught.value)


def test_scores_are_numbers_booleans_or_lists_of_them() -> None:
    assert numbers(labelled("1.5", "true", "-2"), required=True)[0].tolist() == [[1.5], [1.0], [-2.0]]  # type: ignore[union-attr]
    several = [Record("a", labels=("1", "2.5"))]
    assert numbers(several, required=True, outputs=2)[0].tolist() == [[1.0, 2.5]]  # type: ignore[union-attr]
    for wrong in ("nan", "high"):
        with pytest.raises(DataError, match="which is no number"):
            numbers(labelled(wrong), required=True)
    with pytest.raises(DataError, match="evaluation text 2 has no label"):
        numbers(labelled("1", ""), required=True)


# Tags


BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
BIOES = ("O", *(f"{prefix}-{kind}" for kind in ("PER", "LOC") for prefix in "BIES"))
BILOU = tuple(name.replace("E-", "L-").replace("S-", "U-") for name in BIOES)
BMES = tuple(name.replace("I-", "M-") for name in BIOES)
IO = ("O", "PER", "LOC")
FOUND = [("PER", 0, 2), ("LOC", 4, 4), ("LOC", 6, 7)]


@pytest.mark.parametrize("names", [BIO, BIOES, BILOU, BMES, IO])
@pytest.mark.parametrize("written", [BIO, BIOES, BILOU, BMES, IO])
def test_tags_of_one_scheme_score_a_model_of_another(names: tuple[str, ...], written: tuple[str, ...]) -> None:
    tags = Scheme(written).tags(FOUND, 9)
    assert entities(tags) == FOUND
    gold, reason = gold_tags([Record("", words=tuple("abcdefghi"), tags=tuple(tags))], names, required=True)
    assert reason == "" and gold is not None
    assert set(gold[0]) <= set(names)
    assert entities(gold[0]) == FOUND


@given(st.lists(st.sampled_from(("O", *BIOES[1:], "I-LOC")), min_size=1, max_size=8))
def test_entities_are_seqevals(tags: list[str]) -> None:
    assert entities(tags) == [tuple(entity) for entity in get_entities(tags)]


def test_types_beginning_with_o_are_entities() -> None:
    assert entities(["ORG", "ORG", "O"]) == [("ORG", 0, 1)]


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (("O", "B-MISC"), "has tag 'B-MISC', unknown to the model"),
        (("O", "-100"), "has tag '-100', unknown to the model"),
        (("O", "5"), "has tag '5', unknown to the model"),
        (("O", ""), "has no tag for its word 'y'"),
        ((), "has no tags"),
    ],
)
def test_tags_that_do_not_fit_are_named(tags: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError) as caught:
        gold_tags([Record("", words=("x", "y"), tags=tags)], BIO, required=True)
    assert message in str(caught.value)


def test_numbers_of_tags_are_the_models_classes() -> None:
    records = [Record("", words=("x", "y"), tags=("1", "0.0"))]
    assert gold_tags(records, BIO, required=True)[0] == [["B-PER", "O"]]
    assert gold_tags(records, ("0", "1"), required=True)[0] == [["1", "0"]]


def test_arrays_of_sets_are_boolean() -> None:
    found = label_sets(SETS["numbers"], MANY, 4, required=True)[0]
    assert found is not None and found.dtype == np.bool_
