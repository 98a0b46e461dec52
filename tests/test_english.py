"""Docstrings name a thing or say what a function does, and long functions mark their steps with comments."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    path for folder in ("qdq", "export", "engines", "examples") for path in sorted((ROOT / folder).rglob("*.py"))
]
QUESTIONS = ("what", "how", "which", "where", "whether", "who", "why", "when")
LONG = 20  # lines of statements that are read at one look
PRAGMA = re.compile(r"#\s*(type:|noqa|pragma)")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def question_docstrings(source: str) -> Iterator[str]:
    """Docstrings that begin with a question word: ``line: first words``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and node.body:
            words = (ast.get_docstring(node) or "").split()
            if words and words[0].lower() in QUESTIONS:
                yield f"{node.body[0].lineno}: {' '.join(words[:8])}"


def uncommented_functions(source: str) -> Iterator[str]:
    """Functions with more than LONG lines of statements and no comment among them: ``line: name, lines``."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0] for t in tokens if t.type == tokenize.COMMENT and not PRAGMA.match(t.string)}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, Function):
            continue
        documented = ast.get_docstring(node) is not None
        body = node.body[documented:]
        if not body or node.end_lineno is None:
            continue
        start = node.body[0].end_lineno if documented else node.lineno  # comments right below either count
        lines = node.end_lineno - body[0].lineno + 1
        if lines > LONG and not comments & set(range(start or 0, node.end_lineno + 1)):
            yield f"{node.lineno}: {node.name}, {lines} lines"


@pytest.mark.parametrize("check", [question_docstrings, uncommented_functions])
def test_sources_read_well(check: Callable[[str], Iterator[str]]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{place}" for path in SOURCES for place in check(path.read_text(encoding="utf-8"))
    ]
    assert not found, f"{len(found)} places:\n" + "\n".join(found)


def test_the_checks_see_what_they_are_for() -> None:
    long = "\n".join(f"    x = {number}" for number in range(LONG + 1))
    assert list(question_docstrings('"""Whether it is so."""\ndef f():\n    """Return whether it is so."""\n'))
    assert not list(question_docstrings('def f():\n    """Return whether it is so."""\n'))
    assert list(uncommented_functions(f'def f():\n    """Count."""\n{long}\n')) == [f"1: f, {LONG + 1} lines"]
    assert list(uncommented_functions(f"def f():\n    x = 0  # type: ignore[assignment]\n{long}\n"))
    assert not list(uncommented_functions(f'def f():\n    """Count."""\n    # count up\n{long}\n'))
    assert not list(uncommented_functions(f"def f():\n{long}  # the last one\n"))
