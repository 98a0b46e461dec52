"""Tables as people export them: read at the right character, or refused with the lines as they were read."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdq.errors import DataError
from qdq.text.data import Record, TextSource, read_records

ROWS = (("a fine film", "pos"), ("a dull film", "neg"), ("great acting", "pos"))


def read(path: Path, content: str, **options: object) -> list[Record]:
    path.write_bytes(content.encode())
    return read_records(TextSource(str(path), **options))[0]  # type: ignore[arg-type]


def refusal(path: Path, content: str, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read(path, content, **options)
    return str(caught.value)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_the_delimiter_follows_the_content(tmp_path: Path, name: str, delimiter: str) -> None:
    rows = [("text", "label"), *ROWS]
    found = read(tmp_path / name, "".join(delimiter.join(row) + "\r\n" for row in rows))
    assert [(record.text, record.label) for record in found] == list(ROWS)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('text;label\n"one, two";1\n"three, four";0\n', ["one, two", "three, four"]),  # as many commas as columns
        ("sep=;\ntext;label\na b;1\nc d;0\n", ["a b", "c d"]),  # Excel's first line
        ('text, label\n"a, b", 1\n"c", 0\n', ["a, b", "c"]),  # a space behind the delimiter
        (",text,label\n0,a b,1\n1,c d,0\n", ["a b", "c d"]),  # pandas' index
        ("text,label,\na b,1,\nc d,0,\n", ["a b", "c d"]),  # a delimiter behind every row
        ('text\tlabel\n"a ""b"" c"\t1\n"d"\t0\n', ['a "b" c', "d"]),  # a TSV of pandas
        ('text\tlabel\n"a\nb"\t1\n"c"\t0\n', ["a\nb", "c"]),  # a line break inside quotes behind tabs
        ("text\n" + "no comma here\nnor here\n", ["no comma here", "nor here"]),
    ],
)
def test_dialects_that_tools_write(tmp_path: Path, content: str, texts: list[str]) -> None:
    assert [record.text for record in read(tmp_path / "a.csv", content)] == texts


HEADLESS = {
    "labels first": "1\tthe first text\n0\tanother text\n",
    "names of classes": "fine film,pos\ndull film,neg\ngood one,pos\n",
    "a long text": "this is a text of several words,other\nshort,one\n",
    "a sentence": "It works.,yes\nIt fails.,no\n",
    "scores": "3.5;a b\n1.25;c d\n",
    "one column": "the very first line of a list of texts\nthe second line\n",
}


@pytest.mark.parametrize("content", HEADLESS.values(), ids=HEADLESS)
def test_a_missing_header_is_shown_and_asked_for(tmp_path: Path, content: str) -> None:
    message = refusal(tmp_path / "a.csv", content)
    assert "has no header line" in message
    assert "\n  line 1: [" in message
    assert "--header" in message


def test_given_names_make_the_first_line_a_row(tmp_path: Path) -> None:
    found = read(tmp_path / "a.tsv", "1\tone text\n0\ttwo texts\n", header=("label", "text"))
    assert found == [Record("one text", None, "1"), Record("two texts", None, "0")]
    message = refusal(tmp_path / "a.tsv", "1\tone text\n0\ttwo texts\n", header=("label", "id", "text"))
    assert "--header names 3 columns (label, id, text) and the file has 2, split at tab:" in message


def test_names_for_a_file_that_has_them_are_refused(tmp_path: Path) -> None:
    assert "leave --header out" in refusal(tmp_path / "a.csv", "text,label\na b,1\n", header=("Text", "label"))
    assert "leave --header out" in refusal(tmp_path / "a.json", '[{"text": "a b"}]', header=("text", "label"))


def test_a_header_of_numbers_counts_where_the_user_names_its_columns(tmp_path: Path) -> None:
    content = "0,1\nsome text,1\nother text,0\n"
    assert "holds the number 0" in refusal(tmp_path / "a.csv", content)
    found = read(tmp_path / "a.csv", content, text_columns=("0",), label_column="1")
    assert [record.label for record in found] == ["1", "0"]


def test_a_row_that_does_not_fit_is_shown_as_it_was_split(tmp_path: Path) -> None:
    message = refusal(tmp_path / "a.csv", "text,label\na b,1\nc, d,0\n")
    assert "line 3: 3 columns where the header has 2 (text, label), split at ',':" in message
    assert "line 3: [c] [d] [0]" in message


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("text,label\na b,1\nc d,0\n", "looks like a table split at ','"),
        ("0;a b\n1;c d\n0;e f\n", "looks like a table split at ';'"),
        ("pos|a b\nneg|c d\npos|e f\n", "looks like a table split at '|'"),
        ("one text\tits pair\nanother\tand its\n", "looks like a table split at tab"),
        ("__label__1 a b\n__label__0 c d\n", "looks like fastText's labelled lines"),
        ('[{"text": "a"},\n{"text": "b"}]\n', "looks like a JSON list"),
        ("Anna/B-PER saw/O\nno/O one/O\n", "words with their tags behind a slash"),
        ("1 a b\n0 c d\n1 e f\n0 g\n0 h i\n", "a class in front of every text (1 a b)"),
        ("DESC:manner How ?\nENTY:x What ?\n" * 3, "a class in front of every text (DESC:manner How ?)"),
        ("".join(f"bc/x 0 {n} Anna NN (NP* - *\n" for n in range(6)), "columns with spaces between"),
        ("# a comment\none text\tits pair\nanother\tand its\n", "looks like a table split at tab"),
        ("<!DOCTYPE html>\n<html></html>\n", "is an HTML or XML page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
    ],
)
def test_text_that_is_no_text_is_refused_with_the_hint(tmp_path: Path, content: str, hint: str) -> None:
    assert hint in refusal(tmp_path / "a.txt", content)


@pytest.mark.parametrize(
    "content",
    [
        "One, two.\nThree, four.\nFive, six.\n",
        "Wait; what?\nYes; no.\n",
        "a|b\nlonger text without one\n",
        "Hello\n",
        "Dinner at 8, then home\nBreakfast at 9, then work\n",
        "2 eggs\n2 cups of flour\n1 spoon of oil\n1 pan\n2 plates\n",
        "number 1 of all\nnumber 2 of all\nnumber 3 of all\nnumber 4 of all\nnumber 5 of all\n",
        "and/or\nO/B-side\n",
    ],
)
def test_prose_with_commas_stays_prose(tmp_path: Path, content: str) -> None:
    assert [record.text for record in read(tmp_path / "a.txt", content)] == content.splitlines()


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl"])
def test_lines_of_old_macs_are_named(tmp_path: Path, name: str) -> None:
    assert "lines end with a carriage return alone" in refusal(tmp_path / name, "text,label\ra b,1\rc d,0\r")
    mixed = "text,label\r\na b,1\rc d,0\r\n"
    if name == "a.csv":
        assert "a line of it ends with a carriage return alone" in refusal(tmp_path / name, mixed)


def test_a_compressed_or_binary_file_is_named(tmp_path: Path) -> None:
    for magic, kind in ((b"PK\x03\x04", "Excel workbook"), (b"\x1f\x8b\x08", "gzip"), (b"PAR1", "a Parquet file")):
        (tmp_path / "a.csv").write_bytes(magic + b"\0\1")
        with pytest.raises(DataError, match=kind):
            read_records(TextSource(str(tmp_path / "a.csv")))
