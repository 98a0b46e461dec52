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
