"""Tokens with tags in the layouts of public corpora, as lines and as lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qdq.errors import DataError
from qdq.text.data import Record, TextSource, read_records

WORDS, TAGS = ("Anna", "saw", "Paris", "."), ("B-PER", "O", "B-LOC", "O")
PAIRS = list(zip(WORDS, TAGS, strict=True))
SENTENCE = (WORDS, TAGS)


def read(path: Path, content: str, **options: Any) -> list[Record]:
    path.write_text(content, encoding="utf-8")
    return read_records(TextSource(str(path), **options))[0]


def lines(form: str, sentences: int = 2) -> str:
    block = "\n".join(form.format(n=n, w=w, t=t) for n, (w, t) in enumerate(PAIRS, 1))
    return "\n\n".join([block] * sentences) + "\n"


LAYOUTS = {
    "CoNLL-2003": "-DOCSTART- -X- -X- O\n\n" + lines("{w} NNP B-NP {t}"),
    "CoNLL-2002": lines("{w} NP {t}"),
    "tag first": lines("{t}\t{w}"),
    "WNUT": lines("{w}\t{t}"),
    "GermEval": "# http://example.org\n" + lines("{n}\t{w}\t{t}\tO"),
    "tag before a score": lines("{w}\t{t}\t0.9"),
    "windows": "\ufeff" + lines("{w} {t}").replace("\n", "\r\n"),
    "with a header": "token\ttag\n" + lines("{w}\t{t}"),
    "comments of CoNLL-U": "# sent_id = 1\n" + lines("{w}\t_\t{t}"),
}


@pytest.mark.parametrize("suffix", [".txt", ".tsv", ".conll"])
@pytest.mark.parametrize("content", LAYOUTS.values(), ids=LAYOUTS)
def test_token_lines_of_public_corpora(tmp_path: Path, content: str, suffix: str) -> None:
    found = read(tmp_path / f"a{suffix}", content)
    assert [(record.words, record.tags) for record in found] == [SENTENCE] * 2


CONLLU = (
    "# text = Anna saw Paris .\n1\tAnna\tAnna\tPROPN\tNNP\t_\t2\tnsubj\t_\t_\n2-3\tsaw\t_\t_\t_\t_\t_\t_\t_\t_\n"
    "2\tsaw\tsee\tVERB\tVBD\t_\t0\troot\t_\t_\n2.1\tnot\tnot\tPART\tRB\t_\t_\t_\t_\t_\n"
    "3\tParis\tParis\tPROPN\tNNP\t_\t2\tobj\t_\tSpaceAfter=No\n4\t.\t.\tPUNCT\t.\t_\t2\tpunct\t_\t_\n"
)


@pytest.mark.parametrize("name", ["a.conllu", "a.txt"])
def test_conll_u_holds_parts_of_speech(tmp_path: Path, name: str) -> None:
    """Tokens of several words, and words that are not in the text, are no words of the sentence."""
    found = read(tmp_path / name, f"{CONLLU}\n{CONLLU}")
    assert [record.words for record in found] == [WORDS, WORDS]
    assert found[0].tags == ("PROPN", "VERB", "PROPN", "PUNCT")
    assert read(tmp_path / name, CONLLU, label_column="xpos")[0].tags == ("NNP", "VBD", "NNP", ".")


def test_tags_without_prefix_need_sentences_and_an_outside(tmp_path: Path) -> None:
    content = lines("{w} {t}", 3).replace("B-PER", "PER").replace("B-LOC", "LOC")
    assert read(tmp_path / "a.txt", content)[0].tags == ("PER", "O", "LOC", "O")
    numbers = lines("{w} {t}", 3).replace("B-PER", "1").replace("B-LOC", "3").replace(" O", " 0")
    assert read(tmp_path / "a.txt", numbers)[0].tags == ("1", "0", "3", "0")


def test_names_of_columns_decide(tmp_path: Path) -> None:
    content = lines("{w} {t} O O")
    found = read(tmp_path / "a.txt", content, header=("token", "ner", "chunk", "nested"))
    assert (found[0].words, found[0].tags) == SENTENCE


def test_a_line_without_tag_among_tagged_ones_is_shown(tmp_path: Path) -> None:
    content = lines("{w} {t}", 3).replace("saw O", "saw a film")
    with pytest.raises(DataError, match=r"line 2: looks like one token and its tag a line") as caught:
        read(tmp_path / "a.txt", content)
    assert "line 2: [saw] [a] [film]" in str(caught.value)


def test_a_table_of_tokens_with_sentence_numbers(tmp_path: Path) -> None:
    rows = "Sentence: 1,Anna,NNP,B-per\n,saw,VB,O\nSentence: 2,Paris,NNP,B-geo\n"
    found = read(tmp_path / "a.csv", "Sentence #,Word,POS,Tag\n" + rows)
    assert [(record.words, record.tags) for record in found] == [
        (("Anna", "saw"), ("B-per", "O")),
        (("Paris",), ("B-geo",)),
    ]


ROWS = {
    "names": {"tokens": list(WORDS), "ner_tags": list(TAGS)},
    "words and labels": {"words": list(WORDS), "labels": list(TAGS)},
    "text as a list": {"text": list(WORDS), "ner": list(TAGS)},
    "lists as text": {"tokens": str(list(WORDS)), "tags": json.dumps(TAGS)},
    "numpy's text": {"tokens": "['Anna' 'saw' 'Paris' '.']", "ner_tags": "['B-PER' 'O' 'B-LOC' 'O']"},
    "with spaces": {"sentence": " ".join(WORDS), "word_labels": ",".join(TAGS)},
    "a text beside": {"text": "Anna saw Paris.", "tokens": list(WORDS), "ner_tags": list(TAGS)},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_lists_of_words_and_tags(tmp_path: Path, row: dict[str, Any]) -> None:
    record = read(tmp_path / "a.jsonl", json.dumps(row) + "\n")[0]
    assert (record.words, record.tags) == SENTENCE
    assert record.label is None


SPANS = {
    "doccano": {"text": "Anna saw Paris.", "label": [[0, 4, "PER"], [9, 14, "LOC"]]},
    "doccano, older": {"id": 1, "data": "Anna saw Paris.", "labels": [[9, 14, "LOC"], [0, 4, "PER"]]},
    "doccano, newer": {
        "text": "Anna saw Paris.",
        "entities": [
            {"id": 1, "label": "PER", "start_offset": 0, "end_offset": 4},
            {"id": 2, "label": "LOC", "start_offset": 9, "end_offset": 14},
        ],
        "relations": [],
    },
    "Prodigy": {
        "text": "Anna saw Paris.",
        "tokens": [{"text": "Anna", "start": 0, "end": 4, "id": 0}],
        "spans": [{"start": 0, "end": 4, "label": "PER"}, {"start": 9, "end": 14, "label": "LOC"}],
    },
    "Label Studio": {
        "text": "Anna saw Paris.",
        "label": [
            {"start": 0, "end": 4, "text": "Anna", "labels": ["PER"]},
            {"start": 9, "end": 14, "text": "Paris", "labels": ["LOC"]},
        ],
    },
    "a border with a space": {"text": "Anna saw Paris .", "spans": [[0, 5, "PER"], [9, 15, "LOC"]]},
}


@pytest.mark.parametrize("row", SPANS.values(), ids=SPANS)
def test_spans_of_characters_become_tags_of_words(tmp_path: Path, row: dict[str, Any]) -> None:
    (column,) = (name for name in ("label", "labels", "entities", "spans") if name in row)
    without = {**row, column: []} | {name: "no one ." for name in ("text", "data") if name in row}
    record, none = read(tmp_path / "a.jsonl", f"{json.dumps(row)}\n{json.dumps(without)}\n")
    assert (record.words, record.tags) == SENTENCE
    assert (none.words, none.tags) == (("no", "one", "."), ("O", "O", "O"))
    assert record.label is None and record.text.startswith("Anna saw Paris")


def test_spans_of_a_script_without_spaces_are_of_its_characters(tmp_path: Path) -> None:
    row = {"text": "我住在上海。", "entities": [[3, 5, "LOC"]]}
    record = read(tmp_path / "a.jsonl", json.dumps(row) + "\n")[0]
    assert record.words == tuple("我住在上海。")
    assert record.tags == ("O", "O", "O", "B-LOC", "I-LOC", "O")


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([[0, 4, "PER"], [3, 8, "LOC"]], "'LOC' spans 3 to 8 of its text, which overlaps the one before"),
        ([[9, 99, "LOC"]], "'LOC' spans 9 to 99 of its text, which has 15 characters"),
        ([{"start": 0, "end": 4, "label": "PER", "text": "Otto"}], "where 'Anna' stands, not 'Otto'"),
        ([[0, 3, "PER"], [9, 13, "LOC"]], "the spans in 'label' end inside words"),
    ],
)
def test_spans_that_do_not_fit_their_text_are_named(tmp_path: Path, spans: list[Any], said: str) -> None:
    """An error where they are asked for; a text beside spans that nobody needs is a text."""
    row = json.dumps({"text": "Anna saw Paris.", "label": spans}) + "\n"
    with pytest.raises(DataError, match=said):
        read(tmp_path / "a.jsonl", row, label_column="label")
    assert read(tmp_path / "a.jsonl", row) == [Record("Anna saw Paris.")]


def test_spans_that_count_words_are_not_taken_for_characters(tmp_path: Path) -> None:
    row = {"tokens": list(WORDS), "text": "Anna saw Paris.", "entities": [{"type": "PER", "start": 0, "end": 1}]}
    record = read(tmp_path / "a.jsonl", json.dumps(row) + "\n")[0]
    assert record.tags == ()


def test_numbers_take_the_names_that_the_user_gives(tmp_path: Path) -> None:
    row = json.dumps({"tokens": list(WORDS), "ner_tags": [1, 0, 2, 0]}) + "\n"
    assert read(tmp_path / "a.jsonl", row)[0].tags == ("1", "0", "2", "0")
    assert read(tmp_path / "a.jsonl", row, labels=("O", "B-PER", "B-LOC"))[0].tags == TAGS


def test_parquet_and_arrow_bring_the_names_of_their_numbers(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the optional extra 'train' is not installed")
    names = datasets.ClassLabel(names=["O", "B-PER", "B-LOC"])
    features = datasets.Features(
        {"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": datasets.Sequence(names)}
    )
    data = datasets.Dataset.from_list([{"tokens": list(WORDS), "ner_tags": [1, 0, 2, 0]}], features=features)
    data.to_parquet(tmp_path / "a.parquet")
    data.save_to_disk(tmp_path / "saved")
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    for path in (tmp_path / "a.parquet", arrow, tmp_path / "saved"):
        record = read_records(TextSource(str(path)))[0][0]
        assert (record.words, record.tags, record.classes) == (*SENTENCE, ("O", "B-PER", "B-LOC"))


def test_a_tag_too_few_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: 4 words and 1 tags in 'ner_tags'"):
        read(tmp_path / "a.jsonl", json.dumps({"tokens": list(WORDS), "ner_tags": [0]}) + "\n")


@pytest.mark.parametrize(
    "value",
    [
        {"columns": ["text", "label"], "index": [0, 1], "data": [["a b", 1], ["c d", 0]]},
        {"text": {"0": "a b", "1": "c d"}, "label": {"0": 1, "1": 0}},
        {"text": ["a b", "c d"], "label": [1, 0]},
        {"data": [{"text": "a b", "label": 1}, {"text": "c d", "label": 0}]},
        {"first": {"text": "a b", "label": 1}, "second": {"text": "c d", "label": 0}},
    ],
)
def test_json_tables_of_pandas(tmp_path: Path, value: Any) -> None:
    found = read(tmp_path / "a.json", json.dumps(value))
    assert found == [Record("a b", None, "1"), Record("c d", None, "0")]
    assert read(tmp_path / "a.json", json.dumps(value, indent=1)) == found


def test_several_splits_in_one_document_are_refused(tmp_path: Path) -> None:
    value = {"train": [{"text": "a b"}], "test": [{"text": "c d"}]}
    with pytest.raises(DataError, match=r"several lists of rows \(train, test\)"):
        read(tmp_path / "a.json", json.dumps(value, indent=1))
