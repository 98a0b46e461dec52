"""The scripts in examples/ from outside: help, exit codes, and one message for whatever goes wrong."""

from __future__ import annotations

import ast
import re
import runpy
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from qdq.base.interrupt import Interrupts

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Ended:
    """The exit code of a program, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """`started(script or module, *words)`: run it as `python script words` does, but in this process."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr("qdq.base.interrupt.Interrupts.ignore", Interrupts.restore)  # this process goes on

    def start(program: Path | str, *words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", [str(program), *words])
        with pytest.raises(SystemExit) as end, warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            if isinstance(program, Path):
                runpy.run_path(str(program), run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__")
        return Ended(int(end.value.code or 0), *capsys.readouterr())

    return start


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_needs_no_other_flag(script: Path, started: Callable[..., Ended]) -> None:
    ended = started(script, "--help")
    first = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    assert ended.code == 0 and ended.err == ""
    assert ended.out.startswith("usage: ") and first.split("\n")[0][:60] in ended.out


NEEDED = {
    "compress_qa": "--dataset",
    "compress_seq_cls": "--dataset",
    "infer_qa": "--engine",
    "finetune_glue": "--data_dir",
    "walkthrough": "--data_dir",
    "custom_model": "--no_such",
}


@pytest.mark.parametrize("script", NEEDED)
def test_wrong_usage_is_one_line_and_exit_code_two(script: str, started: Callable[..., Ended]) -> None:
    words = ["--output_dir", "out"] if script == "custom_model" else []
    ended = started(EXAMPLES / f"{script}.py", *words, "--no_such", "1")
    assert ended.code == 2 and ended.err.startswith("qdq: ") and ended.err.count("\n") == 1
    assert NEEDED[script] in ended.err and f"{script}.py --help" in ended.err


def test_unknown_flags_name_the_nearest_one(started: Callable[..., Ended]) -> None:
    words = ("--dataset", "d", "--model_name_or_path", "m", "--output_dir", "o")
    ended = started(EXAMPLES / "compress_seq_cls.py", *words, "--learning_rat", "1")
    assert ended.code == 2 and "unknown option --learning_rat; did you mean '--learning_rate'?" in ended.err
    ended = started(EXAMPLES / "compress_qa.py", *words, "--recipe=qdqbrt")
    assert ended.code == 2 and "--recipe: unknown value 'qdqbrt'; did you mean 'qdqbert'?" in ended.err


def test_failures_are_one_line_and_exit_code_one(started: Callable[..., Ended], tmp_path: Path) -> None:
    """A data set that is neither a folder nor reachable, a model that is none, a compression that is not there."""
    missing = str(tmp_path / "nothing")
    for program, words, message in (
        ("qdq.compress.deploy", (missing, "--target", "openvino"), "has no compression.json"),
        (EXAMPLES / "infer_qa.py", ("--engine", missing, "--question", "a"), "no context"),
        (
            EXAMPLES / "finetune_glue.py",
            ("--data_dir", missing, "--output_dir", missing, "--do_train"),
            "does not exist",
        ),
        (
            EXAMPLES / "compress_seq_cls.py",
            ("--dataset", missing, "--model_name_or_path", missing, "--output_dir", missing, "--device", "cpu"),
            "no such folder",
        ),
    ):
        ended = started(program, *words)
        assert (ended.code, ended.err.count("\n")) == (1, 1) and message in ended.err
    ended = started("qdq.compress.deploy", missing, "--targt", "openvino")
    assert ended.code == 2 and "unknown option --targt; did you mean '--target'?" in ended.err


def test_the_index_names_every_file() -> None:
    linked = set(re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert linked == {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {"README.md"}
