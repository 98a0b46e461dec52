"""Reading text: every format, column detection, the limit, and the optional datasets package."""

import csv
import json
import logging
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdq.errors import ConfigError, DataError
from qdq.text.data import Columns, Record, TextSource, read_records, records_from_rows

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
JSON_ROWS = '{"text": "one cat", "label": 0}\n{"text": "two dogs", "label": 1}\n'


def write(path: Path, content: str | bytes) -> TextSource:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return TextSource(str(path))


def texts(source: TextSource, limit: int | None = None) -> list[str]:
    return [record.text for record in read_records(source, limit)[0]]


def failure(source: TextSource) -> str:
    with pytest.raises(DataError) as caught:
        read_records(source)
    return str(caught.value)


# Formats


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSON_ROWS),
        ("a.json", JSON_ROWS),
        ("list.json", '[{"text": "one cat", "label": 0},\n {"text": "two dogs", "label": 1}]'),
        ("data.json", '{\n "data": [{"text": "one cat", "label": 0}, {"text": "two dogs", "label": 1}]}'),
        ("a.tsv", "text\tlabel\none cat\t0\ntwo dogs\t1\n"),
        ("bom.tsv", "\ufefftext\tlabel\r\none cat\t0\r\n\r\ntwo dogs\t1\r\n"),
        ("a.csv", 'text,label\n"one cat",0\ntwo dogs,1\n'),
        ("A.CSV", "\ufefftext,label\r\none cat,0\r\n,\r\ntwo dogs,1"),
        ("jsonl.txt", JSON_ROWS),
    ],
)
def test_labelled_rows_come_out_of_every_format(tmp_path: Path, name: str, content: str) -> None:
    records, columns = read_records(write(tmp_path / name, content))
    assert records == [Record("one cat", None, "0"), Record("two dogs", None, "1")]
    assert columns == Columns("text", None, "label")


@pytest.mark.parametrize("name", ["a.txt", "a.log", "noending"])
def test_plain_text_is_one_text_per_line(tmp_path: Path, name: str) -> None:
    content = "\ufeffone cat\r\n\n  \ntwo dogs, {maybe}"
    assert texts(write(tmp_path / name, content)) == ["one cat", "two dogs, {maybe}"]


def test_tsv_keeps_lone_quotes_as_text_and_csv_reads_quoted_line_breaks(tmp_path: Path) -> None:
    tsv = write(tmp_path / "a.tsv", 'text\tlabel\n"a lone quote\t1\nand "more"\t0\n')
    assert texts(tsv) == ['"a lone quote', 'and "more"']
    quoted = write(tmp_path / "a.csv", 'text\n"first\nsecond, ""third"""\nplain\n')
    assert texts(quoted) == ['first\nsecond, "third"', "plain"]


def test_squad_files_give_question_and_context(tmp_path: Path) -> None:
    answer = {"text": "Ada", "answer_start": 0}
    questions = [{"question": "Who?", "id": "q1", "answers": [answer]}, {"question": "When?"}]
    paragraph: dict[str, Any] = {"context": "Ada, in 1843.", "qas": questions}
    squad = {"version": "1", "data": [{"paragraphs": [paragraph]}]}
    for indent in (None, 2):
        records, columns = read_records(write(tmp_path / "squad.json", json.dumps(squad, indent=indent)))
        asked = Record("Who?", "Ada, in 1843.", answers=(("Ada", 0),), id="q1")
        assert records == [asked, Record("When?", "Ada, in 1843.")]
        assert columns == Columns("question", "context")
    del paragraph["context"]
    assert "item 1: looks like SQuAD but lacks" in failure(write(tmp_path / "squad.json", json.dumps(squad)))


def test_token_per_line_files_give_sentences(tmp_path: Path) -> None:
    conll = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n"
    assert texts(write(tmp_path / "train.txt", conll)) == ["EU rejects", "Peter"]
    zh = read_records(write(tmp_path / "zh.txt", "希\tO\n望\tO\n\n北\tB-LOC\n京\tI-LOC\n"))[0]
    assert zh[1] == Record("北京", words=("北", "京"), tags=("B-LOC", "I-LOC"))


def test_a_folder_is_read_by_sorted_name_and_skips_what_is_no_data(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", '{"text": "b b"}\n')
    write(tmp_path / "a" / "z.tsv", "text\tid\na a\t7\n")
    write(tmp_path / "c.md", "not data")
    write(tmp_path / ".hidden" / "x.jsonl", "{broken")
    assert texts(TextSource(str(tmp_path))) == ["a a", "b b"]


def test_the_limit_takes_the_first_usable_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", '{"text": ""}\n' + "".join(f'{{"text": "t {i}"}}\n' for i in range(500)))
    assert texts(source, limit=3) == ["t 0", "t 1", "t 2"]
    assert read_records(source, limit=3)[1].skipped == 1
    assert len(texts(source, limit=900)) == 500


def test_reading_stops_at_the_limit(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", '{"text": "fine text"}\n' * 200 + "{broken\n")
    assert len(texts(source, limit=150)) == 150
    assert "line 201" in failure(source)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.tsv", "a.csv"])
def test_a_line_of_100_000_characters_is_read(tmp_path: Path, name: str) -> None:
    text = "long " * 20_000
    content = {".txt": text, ".jsonl": json.dumps({"text": text})}.get(Path(name).suffix, f"text\n{text}")
    assert texts(write(tmp_path / name, content)) == [text]


def test_a_csv_field_over_the_csv_modules_own_limit_is_read_and_that_limit_left_alone(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    assert len(texts(write(tmp_path / "a.csv", "text\n" + "x" * (before + 1)))[0]) == before + 1
    assert csv.field_size_limit() == before


LINES = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(rows=LINES)
def test_any_text_survives_json_lines_and_csv(tmp_path_factory: pytest.TempPathFactory, rows: list[str]) -> None:
    folder = tmp_path_factory.mktemp("any")
    expected = [row for row in rows if row.strip()] or ["x"]
    lines = write(folder / "a.jsonl", "".join(json.dumps({"text": row}) + "\n" for row in expected))
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([["text"], *([row] for row in expected)])
    assert texts(lines) == texts(TextSource(str(folder / "a.csv"))) == expected


# Columns


def detected(*rows: dict[str, Any], **options: Any) -> tuple[str, str | None, str | None]:
    columns = records_from_rows(rows, TextSource("memory", **options))[1]
    return columns.text, columns.pair, columns.label


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"Quality": "1", "#1 ID": "70", "#2 ID": "71", "#1 String": "a b", "#2 String": "c d"}, "#1 String|#2 String"),
        ({"label": "108", "label_desc": "news_edu", "sentence": "上课时", "keywords": ""}, "sentence"),
        ({"sentence1": "借呗", "sentence2": "花呗", "label": "0"}, "sentence1|sentence2"),
        ({"id": "q1", "question": "who?", "context": "long long text", "answers": {"text": []}}, "question|context"),
        ({"Premise": "a b", "Hypothesis": "c", "idx": 3}, "Premise|Hypothesis"),
        ({"question1": "a?", "question2": "b?", "is_duplicate": "1"}, "question1|question2"),
        ({"TEXT": "short", "url": "https://example.org/a/much/longer/string"}, "TEXT"),
        ({"content": "a b", "prompt": "c", "result_list": []}, "prompt|content"),
        ({"text": 7, "remark": "some words here"}, "remark"),
        ({"guid": "a-b-c-d-e-f-0123456789", "remark": "two words"}, "remark"),
        ({"left": "some words here", "right": "some more words", "tag": "x y"}, "left|right"),
        ({"note": "a rather long sentence of words", "hint": "a b"}, "note"),
    ],
)
def test_text_columns_are_found(row: dict[str, Any], expected: str) -> None:
    text, pair, _ = detected(row)
    assert "|".join(filter(None, (text, pair))) == expected


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"text": "a", "Quality": "1"}, "Quality"),
        ({"text": "a", "label_desc": "news", "label": 3}, "label"),
        ({"text": "a", "label_desc": "news"}, "label_desc"),
        ({"text": "a", "Target": 1.5}, "Target"),
        ({"text": "a", "labels": [1, 2]}, "labels"),
        ({"text": "a", "labels": [{"start": 1}]}, None),
        ({"text": "a", "score": 1}, "score"),
        ({"text": "a", "points": 1}, None),
    ],
)
def test_the_label_column_is_found(row: dict[str, Any], label: str | None) -> None:
    assert detected(row)[2] == label


def test_named_columns_win_over_detection() -> None:
    row = {"text": "a", "label": "1", "body": "b c", "kind": "z"}
    assert detected(row, text_columns=("body",), label_column="kind") == ("body", None, "kind")
    assert detected(row, text_columns=("body", "text")) == ("body", "text", "label")


@pytest.mark.document_row("001/2")
def test_files_of_the_shape_of_mrpc_tnews_and_afqmc(tmp_path: Path) -> None:
    mrpc = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t702876\t702977\tHe, "x", left.\tHe left "x.\n'
    records = read_records(write(tmp_path / "train.tsv", mrpc))[0]
    assert records == [Record('He, "x", left.', 'He left "x.', "1")]
    tnews = '{"label": "108", "label_desc": "news_edu", "sentence": "上课时学生手机响个不停", "keywords": ""}\n'
    records = read_records(write(tmp_path / "tnews.json", tnews))[0]
    assert records == [Record("上课时学生手机响个不停", None, "108", "news_edu")]
    afqmc = '{"sentence1": "双十一花呗提额在哪", "sentence2": "里可以提花呗额度", "label": "0"}\n'
    records = read_records(write(tmp_path / "afqmc.json", afqmc))[0]
    assert records == [Record("双十一花呗提额在哪", "里可以提花呗额度", "0")]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the evaluation data beside the checkout are not here")
@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("mrpc/train.tsv", 3668, Columns("#1 String", "#2 String", "Quality")),
        ("tnews/dev.json", 10000, Columns("sentence", None, "label")),
        ("afqmc/dev.json", 4316, Columns("sentence1", "sentence2", "label")),
        ("cmrc2018/cmrc2018_trial.json", 1000, Columns("question", "context", skipped=2)),  # two empty questions
        ("conll2003/valid.txt", 3250, Columns("text")),
        ("wnut17/emerging.test.annotated", 1287, Columns("text")),
        ("uie/product_doccano_ext.jsonl", 35, Columns("text")),
        ("uie/product_train.txt", 210, Columns("prompt", "content")),
    ],
)
def test_the_evaluation_data_are_read_whole(name: str, rows: int, columns: Columns) -> None:
    records, found = read_records(TextSource(str(SHARED / name)))
    assert (len(records), found) == (rows, columns)


def test_empty_rows_are_skipped_counted_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": "a", "pair": "b"}, {"text": None, "pair": "b"}, {"text": "a", "pair": None}, {"text": " "}]
    content = "".join(json.dumps({"pair": "b", **row}) + "\n" for row in rows)
    with caplog.at_level(logging.WARNING):
        records, columns = read_records(write(tmp_path / "a.jsonl", content))
    assert records == [Record("a", "b")]
    assert columns.skipped == 3
    assert "3 of 4 rows skipped, 'text' or 'pair' is empty there" in caplog.text


def test_an_unpaired_surrogate_does_not_reach_the_tokenizer(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.jsonl", '{"text": "so \\ud83d sad \\ud83d\\ude00"}\n')) == ["so ? sad 😀"]


# The datasets package


class FakeDatasets(types.ModuleType):
    """Stands in for the optional package: one saved DatasetDict, one saved Dataset, nothing on the hub."""

    config = types.SimpleNamespace(HF_DATASETS_CACHE="nowhere")
    exceptions = types.SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))

    def load_from_disk(self, folder: str) -> Any:
        rows = [{"sentence": f"{Path(folder).name} row", "label": 1, "idx": 0}]
        return {"train": rows, "test": rows * 2} if Path(folder).name == "both" else rows

    def load_dataset(self, name: str) -> Any:
        raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets("datasets"))
    answers = {"nobody/nothing": "", "nobody/there": "no answer"}
    monkeypatch.setattr("qdq.loading.hub.silence", answers.get)
    write(tmp_path / "both" / "dataset_dict.json", "{}")
    write(tmp_path / "one" / "state.json", "{}")
    return tmp_path


def test_saved_datasets_are_read_with_or_without_the_prefix_and_split(saved: Path) -> None:
    assert read_records(TextSource(f"datasets:{saved / 'one'}"))[0] == [Record("one row", None, "1", id="0")]
    assert texts(TextSource(str(saved / "one"))) == ["one row"]
    assert len(texts(TextSource(str(saved / "both")))) == 1
    assert len(texts(TextSource(f"datasets:{saved / 'both'}:test"))) == 2


def test_dataset_faults_name_the_dataset_and_the_way_out(saved: Path) -> None:
    assert "no split 'tset'; did you mean 'test'?" in failure(TextSource(f"datasets:{saved / 'both'}:tset"))
    assert "saved without splits; leave ':test' away" in failure(TextSource(f"datasets:{saved / 'one'}:test"))
    message = failure(TextSource("datasets:nobody/nothing"))
    assert "datasets:nobody/nothing: cannot be loaded (Dataset 'nobody/nothing' doesn't exist on the Hub)" in message
    message = failure(TextSource("datasets:nobody/there"))
    assert "datasets:nobody/there: is no folder here, and the hub cannot be reached (no answer); save" in message


def test_without_the_datasets_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[train\]'"):
        read_records(TextSource("datasets:imdb"))


def test_a_real_dataset_round_trip(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the optional extra 'train' is not installed")
    data = datasets.Dataset.from_list([{"text": f"row {n}", "label": n} for n in range(3)])
    records, columns = records_from_rows(data, TextSource("memory"), limit=2)
    assert records == [Record("row 0", None, "0"), Record("row 1", None, "1")]
    assert columns == Columns("text", None, "label")
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "both")
    for path in (str(tmp_path / "one"), f"datasets:{tmp_path / 'both'}:test"):
        assert texts(TextSource(path)) == ["row 0", "row 1", "row 2"]


def test_importing_the_reader_needs_no_heavy_package() -> None:
    code = "import sys, qdq.text.data, qdq.text.encode; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
