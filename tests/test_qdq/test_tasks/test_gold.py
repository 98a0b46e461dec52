"""Gold labels are read the same way wherever they are read, and never by a guess at the order of the classes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qdq.errors import DataError
from qdq.loading.model import LoadedModel, load_model
from qdq.tasks.gold import ORDERS, gold_of, with_consensus
from qdq.tasks.loading import EvaluationSettings, load_evaluation
from qdq.text.data import Record, TextSource, read_records

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
REQUIRED = EvaluationSettings(required=True)
NLI = ("entailment", "contradiction", "neutral")


@pytest.fixture(scope="module")
def named(tiny_checkpoint: Callable[..., Path]) -> Callable[..., LoadedModel]:
    """`named(*classes)`: a classifier whose config names its classes so; `named(3)` one with three unnamed classes."""
    loaded = load_model(str(tiny_checkpoint(num_hidden_layers=1)))

    def model(*classes: str | int) -> LoadedModel:
        count = classes[0] if isinstance(classes[0], int) else len(classes)
        names = tuple(f"LABEL_{n}" for n in range(count)) if isinstance(classes[0], int) else tuple(map(str, classes))
        return dataclasses.replace(loaded, labels=names)

    return model


@pytest.fixture(scope="module")
def example_reader() -> Iterator[Any]:
    """The compression scripts' reader of data and labels."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import task_data  # type: ignore[import-not-found, unused-ignore]

        yield task_data
    finally:
        sys.path.remove(str(EXAMPLES))


def flags(**given: Any) -> Any:
    """Data flags of a compression script."""
    empty = {"text_columns": (), "label_column": None, "header": (), "labels": ()}
    return types.SimpleNamespace(max_train_samples=0, max_eval_samples=0, **{**empty, **given})


def write(folder: Path, rows: Sequence[Mapping[str, Any]], name: str = "dev.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def evaluated(source: TextSource, loaded: LoadedModel) -> list[int] | None:
    """Class numbers as `qdq evaluate` has them, None where it refuses."""
    try:
        return load_evaluation(source, loaded, REQUIRED).problem._gold.tolist()  # type: ignore[attr-defined, no-any-return]
    except DataError:
        return None


def trained(reader: Any, dataset: str, loaded: LoadedModel, **given: Any) -> list[int] | None:
    """Class numbers as the compression scripts have them, None where they refuse."""
    try:
        return [label for _, label in reader.with_classes(loaded, reader.read(dataset, "dev", flags(**given)), "dev")]
    except DataError:
        return None


# The readers agree


WORDS = ("news", "Sport", "entailment", "contradiction", "neutral", "not_entailment", "true", "false", "b", "A")


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    """Data of some classes in any form and place, and a model that names its classes or does not."""
    classes = tuple(draw(st.lists(st.sampled_from(WORDS), min_size=2, max_size=4, unique_by=str.lower)))
    model = draw(st.sampled_from(("named", "unnamed", "others")))
    return {
        "classes": draw(st.permutations(classes)),  # in the order of the data set
        "model": model,
        "config": draw(st.permutations(classes)) if model == "named" else ("x", "y", "z", "w")[: len(classes)],
        "labels": draw(st.lists(st.integers(0, len(classes) - 1), min_size=1, max_size=6)),
        "form": draw(st.sampled_from(("names", "numbers", "hub"))),
        "place": draw(st.sampled_from(("ocnli", "CMNLI_public", "rte", "mnli", "data"))),
        "given": draw(st.sampled_from((False, False, True))),
    }


def expected(case: Mapping[str, Any]) -> list[int] | None:
    """Class numbers by what is written down somewhere, None where nothing says them; written without the product."""
    classes, labels = list(case["classes"]), case["labels"]
    if case["form"] == "numbers" and not case["given"]:
        return list(labels)  # numbers without names are the model's
    if case["model"] == "named":
        return [list(case["config"]).index(classes[label]) for label in labels]
    if case["form"] == "hub" or case["given"]:
        return list(labels)  # the data's own order, or the user's
    written = {classes[label] for label in labels}
    order = ORDERS.get(case["place"].lower().removesuffix("_public"), ())
    if case["model"] == "unnamed" and len(order) == len(classes) and written <= set(order):
        return [order.index(classes[label]) for label in labels]
    if len(classes) == 2 and written <= {"true", "false"}:  # as numbers have them
        return [int(classes[label] == "true") for label in labels]
    return None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(), number=st.integers(0, 10**9))
@pytest.mark.document_row("000/3", "000/8", "004/6")
def test_evaluation_and_training_read_the_same_classes_or_both_refuse(
    case: Mapping[str, Any], number: int, named: Any, example_reader: Any, hub: Any, tmp_path_factory: Any
) -> None:
    """Drawn: label sets, their order, their form, the place of the data, a config with and without names."""
    loaded = named(len(case["classes"])) if case["model"] == "unnamed" else named(*case["config"])
    as_names = case["form"] == "names"
    rows = [{"sentence": "the cat", "label": case["classes"][n] if as_names else n} for n in case["labels"]]
    given = {"labels": tuple(case["classes"])} if case["given"] else {}
    if case["form"] == "hub":
        hub(rows, case["classes"])
        dataset, source = "some data", TextSource("datasets:some data:dev", **given)
    else:
        folder = write(tmp_path_factory.mktemp("drawn") / case["place"], rows)
        dataset, source = str(folder), TextSource(str(folder / "dev.json"), **given)
    wanted = expected(case)
    assert evaluated(source, loaded) == wanted
    assert trained(example_reader, dataset, loaded, **given) == wanted


# The tasks of CLUE and GLUE


@pytest.mark.parametrize(
    ("place", "labels", "classes", "expected_classes"),
    [
        ("ocnli", ("neutral", "entailment", "contradiction"), 3, [2, 0, 1]),
        ("cmnli_public", ("neutral", "entailment", "contradiction"), 3, [2, 1, 0]),
        ("MNLI", ("neutral", "entailment"), 3, [2, 1]),
        ("QNLI", ("not_entailment", "entailment"), 2, [1, 0]),
        ("RTE", ("not_entailment",), 2, [1]),  # classes may be absent
        ("tnews", ("116", "100", "104"), 15, [14, 0, 4]),
        ("anywhere", ("116", "100"), 15, [14, 0]),  # codes beyond the numbers of the classes
        ("iflytek", ("118", "0"), 119, [118, 0]),
        ("afqmc", ("1", "0"), 2, [1, 0]),
    ],
)
@pytest.mark.document_row("000/8", "004/6")
def test_the_classes_of_a_task_are_in_its_order(
    place: str, labels: Sequence[str], classes: int, expected_classes: list[int], named: Any, tmp_path: Path
) -> None:
    folder = write(tmp_path / place, [{"sentence": "a", "label": label} for label in labels])
    assert evaluated(TextSource(str(folder / "dev.json")), named(classes)) == expected_classes


WSC = {
    "target": {"span1_text": "cat", "span1_index": 4, "span2_text": "it", "span2_index": 13},
    "text": "the cat sees it",
}


@pytest.mark.document_row("000/3", "000/8")
def test_a_model_that_always_says_true_scores_alike_in_evaluation_and_compression(
    named: Any, example_reader: Any, tmp_path: Path
) -> None:
    """cluewsc2020's classes are true, false: where a boolean would be 1 is class 0."""
    folder = write(tmp_path / "wsc_skew", [{**WSC, "label": "true"}] * 3 + [{**WSC, "label": "false"}])
    assert evaluated(TextSource(str(folder / "dev.json")), named(2)) == [0, 0, 0, 1]
    assert trained(example_reader, str(folder), named(2)) == [0, 0, 0, 1]
    assert trained(example_reader, str(folder), named("false", "true")) == [1, 1, 1, 0]  # the model's names come first


@pytest.mark.document_row("000/3", "000/8")
def test_the_scripts_keep_keywords_and_marks(example_reader: Any, hub: Any, tmp_path: Path) -> None:
    csl = {"abst": "a cat", "keyword": ["dog", "city"], "label": "1"}
    for name, row, text, pair in (
        ("csl", csl, "dog city", "a cat"),
        ("cluewsc2020", {**WSC, "label": "true"}, "the _cat_ sees [it]", None),
    ):
        (record,) = example_reader.read(str(write(tmp_path / name, [row])), "dev", flags())
        assert (record.text, record.pair) == (text, pair)
        served = hub([{**row, "label": 0}], ("true", "false") if name == "cluewsc2020" else ("0", "1"))
        (record,) = example_reader.read(f"clue {name}", "dev", flags())
        assert served.asked == ("clue", name) and (record.text, record.pair) == (text, pair)


# The hub


@pytest.mark.parametrize(
    ("names", "config", "expected_classes"),
    [
        (("not_equivalent", "equivalent"), (2,), [0, 1]),  # glue/mrpc: the alphabet would reverse it
        (("not_equivalent", "equivalent"), ("equivalent", "not_equivalent"), [1, 0]),
        (("neutral", "entailment"), ("contradiction", "Entailment"), None),  # one of them, but not the other
        (("neutral", "entailment", "contradiction"), NLI, [2, 0]),
        (("neutral", "entailment", "contradiction"), (2,), None),  # other classes than the model's
        (("1", "2"), (2,), [0, 1]),  # names that look like numbers are names
        (("1", "2"), ("2", "1"), [1, 0]),
        (("1", "2"), ("low", "high"), [0, 1]),
    ],
)
@pytest.mark.document_row("000/7", "004/5")
def test_numbers_of_the_hub_are_its_classes(
    names: Sequence[str],
    config: tuple[Any, ...],
    expected_classes: list[int] | None,
    named: Any,
    example_reader: Any,
    hub: Any,
) -> None:
    hub([{"sentence": "a", "label": 0}, {"sentence": "b", "label": 1}], names)
    assert evaluated(TextSource("datasets:glue mrpc:dev"), named(*config)) == expected_classes
    assert trained(example_reader, "glue mrpc", named(*config)) == expected_classes


def test_given_names_order_the_models_classes_where_the_data_name_their_own(named: Any, hub: Any) -> None:
    hub([{"sentence": "a", "label": 0}, {"sentence": "b", "label": 2}], ("neutral", "entailment", "contradiction"))
    assert evaluated(TextSource("datasets:clue ocnli", labels=NLI), named(3)) == [2, 1]


# Rows without a label that counts


@pytest.mark.parametrize("where", ["file", "hub"])
@pytest.mark.document_row("000/3", "000/8")
def test_rows_without_consensus_are_left_out_and_counted(
    where: str, named: Any, example_reader: Any, hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if where == "hub":
        hub([{"sentence": "a", "label": n} for n in (-1, 2, 0)], NLI)
        dataset, source, mark = "clue ocnli", TextSource("datasets:clue ocnli:dev"), "-1"
    else:
        folder = write(tmp_path / "ocnli", [{"sentence": "a", "label": label} for label in ("-", "neutral", NLI[0])])
        dataset, source, mark = str(folder), TextSource(str(folder / "dev.json")), "-"
    evaluation = load_evaluation(source, named(3), REQUIRED)
    assert evaluation.samples == 2 and evaluation.problem._gold.tolist() == [2, 0]  # type: ignore[attr-defined]
    assert evaluation.notes[0] == f"1 rows without consensus ('{mark}') left out"
    assert trained(example_reader, dataset, named(3)) == [2, 0]
    assert f"dev: 1 rows without consensus ('{mark}') left out" in " ".join(capsys.readouterr().err.split())


def test_a_class_may_be_called_minus_and_minus_one() -> None:
    records = [Record("a", label="-"), Record("b", label="+")]
    assert with_consensus(records, ("-", "+"))[0] == records
    numbered = [Record("a", label=label) for label in ("-1", "0", "1")]
    assert with_consensus(numbered, ("LABEL_0", "LABEL_1", "LABEL_2"))[0] == numbered  # refused later, not left out


def test_a_test_split_without_labels_gives_predictions(named: Any, hub: Any) -> None:
    hub([{"sentence": "a", "label": -1}, {"sentence": "b", "label": -1}], NLI)
    evaluation = load_evaluation("datasets:clue ocnli:dev", named(3), REQUIRED)
    assert not evaluation.labelled and evaluation.samples == 2
    assert evaluation.reason == "none of the 2 texts has a label"
    assert "all labels are '-1', which is none" in evaluation.notes


# Refusals and what is said


@pytest.mark.parametrize("labels", list(itertools.permutations(("business", "sport", "world"))))
def test_names_that_nobody_numbers_are_refused_with_the_way_out(
    labels: Sequence[str], named: Any, example_reader: Any, tmp_path: Path
) -> None:
    folder = write(tmp_path / "own", [{"sentence": "a", "label": label} for label in labels])
    message = (
        rf"has label '{labels[0]}', unknown to the model .*no names for its classes: give them in order by --labels"
    )
    with pytest.raises(DataError, match=message):
        load_evaluation(str(folder / "dev.json"), named(3), REQUIRED)
    with pytest.raises(DataError, match=message):
        example_reader.with_classes(named(3), example_reader.read(str(folder), "dev", flags()), "dev")
    given = {"labels": ("world", "sport", "business")}
    numbers = [("world", "sport", "business").index(label) for label in labels]
    assert evaluated(TextSource(str(folder / "dev.json"), **given), named(3)) == numbers
    assert trained(example_reader, str(folder), named(3), **given) == numbers


def test_tags_of_a_tagger_without_names_are_refused(named: Any, example_reader: Any, tmp_path: Path) -> None:
    (tmp_path / "dev.txt").write_text("the O\ncat B-PER\n\nour O\nteacher B-PER\n", encoding="utf-8")
    records = example_reader.read(str(tmp_path), "dev", flags())
    with pytest.raises(DataError, match="has tag 'O', unknown to the model"):
        example_reader.with_tags(named(2), records, "dev")
    records = example_reader.read(str(tmp_path), "dev", flags(labels=("B-PER", "O")))
    assert [tags for _, tags in example_reader.with_tags(named(2), records, "dev")] == [[1, 0], [1, 0]]


def test_an_order_that_is_not_the_models_is_said(named: Any, hub: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "ocnli", [{"sentence": "a", "label": "neutral"}])
    records, _ = read_records(TextSource(str(folder)))
    (note,) = gold_of(records, named(3)).notes
    assert note == (
        "the model does not name its classes; they are entailment, contradiction, neutral, as ocnli lists them "
        "(--labels: another order)"
    )
    assert gold_of(records, named(*NLI)).notes == ()
    hub([{"sentence": "a", "label": 0}], ("neutral", "entailment", "contradiction"))
    (note,) = gold_of(read_records(TextSource("datasets:clue ocnli"))[0], named(3)).notes
    assert "they are neutral, entailment, contradiction, as the data or --labels number them" in note
