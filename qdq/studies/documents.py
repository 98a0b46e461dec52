"""docs/documents.md: every row of the public documents that people bring, with the tests that type it.

The rows stand in document_rows.yaml; a test says what it types by ``@pytest.mark.document_row("000/12", …)``: document
number, row number. Tests are read, not run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qdq.errors import DataError
from qdq.studies.markdown import table
from qdq.studies.study import ROOT

ROWS = Path(__file__).with_name("document_rows.yaml")
TESTS = ROOT / "tests"
MARKER = "document_row"
STATES = ("yes", "partly", "no")


@dataclass(frozen=True)
class Row:
    """One feature as a document states it.

    Attributes:
        id: document and row, such as 000/12.
        feature: in the document's own words, shortened.
        missing: the reason why it, or a part of it, does not run as printed; "" when it does.
        instead: the way to the same end, where something is missing.
    """

    id: str
    feature: str
    missing: str = ""
    instead: str = ""

    def state(self, tested: bool) -> str:
        """One of STATES: typed by a test and nothing missing, typed in part, or not typed at all."""
        return ("partly" if self.missing else "yes") if tested else "no"


@dataclass(frozen=True)
class Document:
    """A public document: its title, where it is published, and its rows in order."""

    title: str
    source: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, order=True)
class Place:
    """The place of a test, or of a whole file of them: path below the repository, and the function's name."""

    path: str
    name: str


def documents(path: Path = ROWS) -> list[Document]:
    """Read the documents of a data file. Raises DataError for a key that rows do not have."""
    found = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        rows = []
        for number, values in entry["rows"].items():
            try:
                rows.append(Row(f"{entry['id']}/{number}", **values))
            except TypeError as error:
                raise DataError(f"{path.name}: {entry['id']}/{number}: {error}") from error
        found.append(Document(entry["title"], entry["source"], tuple(rows)))
    return found


def marked(folder: Path = TESTS) -> dict[str, list[Place]]:
    """The tests below `folder` by the row they type, sorted. Raises DataError for an id that is no literal."""
    found: dict[str, set[Place]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        place = path.relative_to(folder.parent).as_posix()
        for name, marker in _markers(ast.parse(path.read_text(encoding="utf-8")), path.stem):
            for argument in marker.args:
                if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
                    raise DataError(f"{place}:{marker.lineno}: {MARKER} takes rows as literals, such as '000/12'")
                found.setdefault(argument.value, set()).add(Place(place, name))
    return {row: sorted(tests) for row, tests in found.items()}


def _markers(node: ast.AST, owner: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield every use of the marker below `node` with the test it belongs to; outside of tests that is the file."""
    for child in ast.iter_child_nodes(node):
        inside = child.name if isinstance(child, ast.FunctionDef) else owner
        if isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute) and child.func.attr == MARKER:
            yield owner, child
        yield from _markers(child, inside)


def page() -> str:
    """docs/documents.md."""
    return render(documents(), marked())


def render(found: list[Document], tests: Mapping[str, list[Place]]) -> str:
    """The page of `found`, with the tests of each row."""
    counts = dict.fromkeys(STATES, 0)
    parts = []
    for document in found:
        lines = []
        for row in document.rows:
            typed = tests.get(row.id, [])
            state = row.state(bool(typed))
            counts[state] += 1
            lines.append([row.id, _cell(row.feature), _here(row, state), ", ".join(map(_link, typed)) or "–"])
        rows = table(["row", "as the document states it", "here", "typed by"], lines)
        parts.append(f"## {document.title}\n\n{document.source}.\n\n{rows}\n")
    return "\n".join([_HEAD.format(rows=sum(counts.values()), **counts), *parts])


def _here(row: Row, state: str) -> str:
    return f"**{state}**: {_cell(row.missing)}. Instead: {_cell(row.instead)}" if row.missing else state


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<")


def _link(test: Place) -> str:
    return f"[{test.name}](../{test.path})"


_HEAD = """\
# Documents that you may hold in hand

People come to this project with five public documents: two versions of PaddleNLP's compression API, a walkthrough of
dynamic quantization, the page of QDQBERT, and PaddleSlim's automatic compression. Each row is a feature as the document
states it. *yes*: a test types what is printed there (names of files and models replaced) and checks what comes out;
*partly* and *no* say what is missing and what to type instead.
{yes} of {rows} rows are *yes*, {partly} *partly*, {no} *no*.

Written by `python -m qdq.studies.pages` from qdq/studies/document_rows.yaml and the tests.
"""


def faults(found: list[Document], tests: Mapping[str, Any]) -> list[str]:
    """Rows without a test and without a way around, half-filled ones, numbers out of order, and rows nobody lists."""
    rows = [row for document in found for row in document.rows]
    said = [
        f"{row.id}: no test types it, and nothing says what to type instead"
        for row in rows
        if not (tests.get(row.id) or row.missing)
    ]
    said += [f"{row.id}: `missing` and `instead` go together" for row in rows if bool(row.missing) != bool(row.instead)]
    for document in found:
        numbers = [int(row.id.partition("/")[2]) for row in document.rows]
        if numbers != list(range(1, len(numbers) + 1)):
            said.append(f"{document.title}: rows are numbered {numbers}")
    return said + [
        f"{row}: typed by a test, and no document has it" for row in sorted(tests.keys() - {r.id for r in rows})
    ]
