"""Every way a text source can be wrong ends in one message that names the file, the line and what to do."""

from pathlib import Path
from typing import Any

import pytest

from qdq.errors import ConfigError, DataError
from qdq.text.data import TextSource, read_records, records_from_rows
from qdq.text.files import MAX_LINE_BYTES

JSON_ROWS = '{"text": "one cat", "label": 0}\n{"text": "two dogs", "label": 1}\n'


def write(path: Path, content: str | bytes) -> TextSource:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return TextSource(str(path))


def failure(source: TextSource) -> str:
    with pytest.raises(DataError) as caught:
        read_records(source)
    return str(caught.value)


def test_a_missing_file_names_its_nearest_sibling(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", JSON_ROWS)
    message = failure(TextSource(str(tmp_path / "trian.jsonl")))
    assert f"does not exist; did you mean {tmp_path / 'train.jsonl'}?" in message
    assert "nor does the folder" in failure(TextSource(str(tmp_path / "nowhere" / "train.jsonl")))


def test_a_path_that_cannot_even_be_asked_for_is_a_data_error() -> None:
    assert "cannot be read (File name too long)" in failure(TextSource("x" * 5000))


def test_an_empty_path_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="data path is empty"):
        read_records(TextSource(" "))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_a_config_error(limit: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot read {limit} rows"):
        records_from_rows([{"text": "a"}], TextSource("memory"), limit)


def test_a_folder_without_readable_files(tmp_path: Path) -> None:
    write(tmp_path / "README.md", "nothing")
    message = failure(TextSource(str(tmp_path)))
    assert "no readable file in this folder; expected .jsonl" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", ""),
        ("a.txt", "\n \n\r\n"),
        ("a.tsv", "text\tlabel\n"),
        ("a.csv", "text,label\n\n"),
        ("a.json", "[]"),
    ],
)
def test_a_file_without_rows(tmp_path: Path, name: str, content: str) -> None:
    assert f"{name}: no rows (empty, only blank lines, or only a header)" in failure(write(tmp_path / name, content))


def test_a_file_whose_texts_are_all_empty(tmp_path: Path) -> None:
    message = failure(write(tmp_path / "a.jsonl", '{"text": "", "label": 1}\n{"text": null, "label": 1}\n'))
    assert "'text' is empty in all 2 rows; name other columns with --text-columns" in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.tsv", "a.jsonl", "a.txt", "a.csv", "a.json"])
def test_utf16_is_named_as_such(tmp_path: Path, name: str, encoding: str) -> None:
    message = failure(write(tmp_path / name, JSON_ROWS.encode(encoding)))
    assert all(word in message for word in ("UTF-16", "save it as UTF-8", "line 1", "byte "))


@pytest.mark.parametrize("name", ["a.txt", "a.tsv", "a.csv"])
def test_latin1_bytes_are_placed(tmp_path: Path, name: str) -> None:
    message = failure(write(tmp_path / name, b"text\nplain\ncaf\xe9 noir\n"))
    assert f"{name}, line 3: not UTF-8 at byte 14 (0xe9); save it as UTF-8" in message


def test_latin1_bytes_in_a_json_list_are_placed(tmp_path: Path) -> None:
    message = failure(write(tmp_path / "a.json", b'[{"text": "a"},\n{"text": "caf\xe9"}]'))
    assert "line 2: not UTF-8 at byte 29 (0xe9)" in message


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    message = failure(write(tmp_path / "model.bin", b"\x7fELF some\nmore\x00\x00"))
    assert "line 2: NUL byte at byte 14, so this is a binary file" in message


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.tsv", "a.csv"])
def test_a_line_over_the_limit_is_refused(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / name, '{"text": "a b"}\n' + "é" * (MAX_LINE_BYTES // 2 + 1))
    assert "line 2: longer than 10 MB" in failure(source)


@pytest.mark.parametrize("option", [{"text_columns": ("sentnce",)}, {"label_column": "sentnce"}])
def test_a_column_that_is_not_there(tmp_path: Path, option: dict[str, Any]) -> None:
    path = write(tmp_path / "a.tsv", "sentence\tlabel\na b\t1\n").path
    message = failure(TextSource(path, **option))
    assert "no column 'sentnce'; did you mean 'sentence'? (valid: label, sentence)" in message


def test_three_text_columns_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match="names 3 columns"):
        records_from_rows([{"a": "x"}], TextSource("memory", text_columns=("a", "b", "c")))


def test_no_text_column_at_all(tmp_path: Path) -> None:
    message = failure(write(tmp_path / "a.jsonl", '{"id": 1, "score": 0.5}\n'))
    assert "no column holds text (columns: id, score); name it: --text-columns" in message


@pytest.mark.parametrize("fault", ['{"text": "b', "[" * 100_000, '{"text": ' + "9" * 5000 + "}"])
def test_a_json_line_that_does_not_parse(tmp_path: Path, fault: str) -> None:
    assert "a.jsonl, line 3: " in failure(write(tmp_path / "a.jsonl", f'{{"text": "a"}}\n\n{fault}\n'))


def test_a_json_row_that_is_no_object(tmp_path: Path) -> None:
    assert "line 2: expected a JSON object" in failure(write(tmp_path / "a.jsonl", '{"text": "a"}\n"b"\n'))
    assert "item 2: expected a JSON object" in failure(write(tmp_path / "a.json", '[{"text": "a"}, "b"]'))


def test_a_broken_json_list_names_the_line(tmp_path: Path) -> None:
    assert "line 2: not valid JSON" in failure(write(tmp_path / "a.json", '[{"text": "a"},\n {"text": }]'))


@pytest.mark.parametrize(("name", "separator"), [("a.tsv", "\t"), ("a.csv", ",")])
def test_a_row_with_another_column_count(tmp_path: Path, name: str, separator: str) -> None:
    rows = [["text", "label"], ["a b", "1"], ["c d", "1", "2"]]
    message = failure(write(tmp_path / name, "\n".join(separator.join(row) for row in rows)))
    assert f"{name}, line 3: 3 columns where the header has 2 (text, label)" in message


def test_a_csv_quote_that_never_closes_names_the_line_that_opened_it(tmp_path: Path) -> None:
    message = failure(write(tmp_path / "a.csv", 'text\nfine\n"open\n' + "more\n" * 50))
    assert "a.csv, line 3: not valid CSV" in message
    assert "close the quote opened in this row" in message


def test_a_header_with_one_name_twice(tmp_path: Path) -> None:
    assert "line 1: column 'text' stands twice" in failure(write(tmp_path / "a.tsv", "text\ttext\na\tb\n"))


def test_a_text_that_is_no_text_or_missing_names_the_line(tmp_path: Path) -> None:
    message = failure(write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": 5}\n'))
    assert "a.jsonl, line 2: 'text' is int, not text" in message
    message = failure(write(tmp_path / "a.jsonl", '{"text": "a"}\n{"other": "b"}\n'))
    assert "a.jsonl, line 2: no column 'text' in this row; it has other" in message


def test_a_folder_with_inconsistent_columns_names_the_file(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"sentence": "a b"}\n')
    write(tmp_path / "b.jsonl", '{"label_desc": "news"}\n')
    assert "b.jsonl, line 1: no column 'sentence'" in failure(TextSource(str(tmp_path)))
