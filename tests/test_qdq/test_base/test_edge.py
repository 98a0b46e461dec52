"""The edge of a script: one message and an exit code for every error, warnings among the other lines."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from qdq.base.edge import Parser, run_script
from qdq.base.interrupt import Interrupts
from qdq.errors import ConfigError, DataError, Unavailable


@pytest.fixture(autouse=True)
def _going_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the tests goes on after a script has ended."""
    monkeypatch.setattr(Interrupts, "ignore", Interrupts.restore)


def raising(error: Exception) -> Callable[[], None]:
    def script() -> None:
        raise error

    return script


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("--x: no"), 2, "qdq: --x: no\n"),
        (DataError("a.tsv: empty"), 1, "qdq: a.tsv: empty\n"),
        (Unavailable("no GPU here"), 3, "qdq: no GPU here\n"),
        (FileNotFoundError(2, "No such file or directory", "b.txt"), 1, "qdq: b.txt: No such file or directory; "),
        (KeyError("c"), 1, "qdq: internal error, KeyError: 'c'; please report it"),
    ],
)
def test_an_error_is_one_message_and_a_code(
    error: Exception, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(raising(error)) == code
    said = capsys.readouterr().err
    assert said.startswith(message) and said.count("\n") == 1


def test_warnings_of_a_script_are_lines_of_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(lambda: logging.getLogger("qdq.any").warning("rows skipped")) == 0
    assert capsys.readouterr().err == "warning: rows skipped\n"


def test_a_parser_raises_where_argparse_would_end_the_process() -> None:
    parser = Parser(prog="script.py")
    parser.add_argument("--batch", type=int, required=True)
    with pytest.raises(ConfigError, match=r"--batch: invalid int value: 'x'; see 'script.py --help'"):
        parser.parse_args(["--batch", "x"])
    with pytest.raises(ConfigError, match=r"the following arguments are required: --batch; see"):
        parser.parse_args([])
    with pytest.raises(ConfigError, match=r"unknown option --batsh; did you mean '--batch'\?"):
        parser.parse_args(["--batch", "1", "--batsh=2"])
    with pytest.raises(ConfigError, match="unexpected argument 'word'"):
        parser.parse_args(["--batch", "1", "word"])
    assert parser.parse_args(["--batch", "1"]).batch == 1
