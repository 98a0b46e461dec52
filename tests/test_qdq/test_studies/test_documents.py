"""docs/documents.md: every row of the documents has a test or a way around, and every marker names a row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qdq.errors import DataError
from qdq.studies.documents import Document, Place, Row, documents, faults, marked, render

SHARED = Path(__file__).resolve().parents[4] / "shared" / "document_rows.md"


def test_every_row_has_a_test_or_a_way_around() -> None:
    assert not faults(documents(), marked())


@pytest.mark.skipif(not SHARED.is_file(), reason="the shared folder with the list of rows is not here")
def test_the_rows_are_those_of_the_list() -> None:
    listed, document = [], ""
    for line in SHARED.read_text(encoding="utf-8").splitlines():
        document = (re.findall(r"^## Document (\d+)", line) or [document])[0]
        listed += [f"{document}/{number}" for number in re.findall(r"^\| (\d+) \|", line)]
    assert len(listed) == 90
    assert [row.id for document in documents() for row in document.rows] == listed


def test_markers_are_found_wherever_they_stand(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    (tests / "deep").mkdir(parents=True)
    (tests / "deep" / "test_a.py").write_text(
        """
import pytest

CASES = [pytest.param(1, marks=pytest.mark.document_row("9/4"))]


@pytest.mark.document_row("9/1", "9/2")
@pytest.mark.parametrize("x", [1, pytest.param(2, marks=pytest.mark.document_row("9/3"))])
def test_one(x):
    pass


class TestTwo:
    @pytest.mark.document_row("9/1")
    def test_two(self):
        pass
""",
        encoding="utf-8",
    )
    one, two, file = (Place("tests/deep/test_a.py", name) for name in ("test_one", "test_two", "test_a"))
    assert marked(tests) == {"9/1": [one, two], "9/2": [one], "9/3": [one], "9/4": [file]}
    (tests / "test_b.py").write_text("import pytest\nROW = '9/1'\npytestmark = pytest.mark.document_row(ROW)\n")
    with pytest.raises(DataError, match=r"tests/test_b\.py:3: document_row takes rows as literals"):
        marked(tests)


def test_faults_and_states_of_rows() -> None:
    rows = (Row("9/1", "a"), Row("9/2", "b", "not this | that"), Row("9/4", "c", "no", "d"))
    found = [Document("T", "S", rows)]
    tests = {"9/2": [Place("tests/test_a.py", "test_a")], "9/7": [Place("tests/test_a.py", "test_b")]}
    assert faults(found, tests) == [
        "9/1: no test types it, and nothing says what to type instead",
        "9/2: `missing` and `instead` go together",
        "T: rows are numbered [1, 2, 4]",
        "9/7: typed by a test, and no document has it",
    ]
    page = render(found, tests)
    assert "0 of 3 rows are *yes*, 1 *partly*, 2 *no*." in page
    assert "| 9/2 | b | **partly**: not this \\| that. Instead:  | [test_a](../tests/test_a.py) |" in page


def test_a_key_that_rows_do_not_have_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text("- id: '9'\n  title: T\n  source: S\n  rows:\n    1: {feature: a, mising: b}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.yaml: 9/1: .*'mising'"):
        documents(path)
