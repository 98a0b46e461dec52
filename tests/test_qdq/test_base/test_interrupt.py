"""Ctrl-C and SIGTERM end a run with one message and 130, wherever they strike; a run that is over keeps its code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from qdq.cli.main import main

ROOT = Path(__file__).resolve().parents[3]
MESSAGE = "qdq: interrupted; whole files were kept, run again to continue\n"

# `python -m driver doctor`: what the doctor would do is replaced by STRIKE, code that sends the signal to itself.
DRIVER = """
import atexit, os, signal, sys, time
import engines.doctor
from qdq.cli.main import main

def strike(number):
    os.kill(os.getpid(), number)

def doctor(folder):
    scope = {{"strike": strike, "number": signal.{number}}}
{body}
    return {{}}

engines.doctor.doctor = doctor
engines.doctor.render = lambda report: "the report\\n"
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests run in the background inherit that it is ignored
{ahead}
sys.exit(main())
"""

PLACES = {
    "in the open": "    strike(scope['number'])",
    # python -m ends itself with SIGINT, whatever the exit code, once a plain KeyboardInterrupt has left an exec()
    "in a string that is executed": "    exec('strike(number)', scope)",
    "where foreign code makes another error of it": """
    try:
        strike(scope["number"])
    except BaseException as error:
        raise ImportError("original import error") from error""",
    "again, where foreign code has swallowed it": """
        try:
            strike(scope["number"])
        except BaseException:
            pass
        strike(scope["number"])""",
    "twice": """
    try:
        strike(scope["number"])
    finally:
        strike(signal.SIGTERM)""",
}


def run(folder: Path, body: str, number: str, ahead: str = "") -> tuple[int, str, str]:
    """Exit status, standard output and error of `python -m driver doctor`."""
    indented = textwrap.indent(textwrap.dedent(body.strip("\n")), "    ")
    (folder / "driver.py").write_text(DRIVER.format(body=indented, number=number, ahead=ahead), encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "driver", "doctor"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.parametrize(
    ("place", "number"),
    [
        *((place, "SIGINT") for place in PLACES),
        ("in the open", "SIGTERM"),
        ("again, where foreign code has swallowed it", "SIGTERM"),
    ],
)
def test_a_signal_ends_the_run(tmp_path: Path, place: str, number: str) -> None:
    code, out, err = run(tmp_path, PLACES[place], number)
    assert (code, out) == (130, "")
    assert err == MESSAGE


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_to_a_run_that_is_over_changes_nothing(tmp_path: Path, number: str) -> None:
    """Letting go of torch and the engines takes python up to a second after the last line."""
    ahead = f"atexit.register(strike, signal.{number})"
    assert run(tmp_path, "    pass", number, ahead) == (0, "the report\n", "")


def test_an_import_is_not_torn_apart(tmp_path: Path) -> None:
    """An exception in the middle of torch's own initialization aborts the process."""
    (tmp_path / "native.py").write_text(
        "import driver\nimport sys\ndriver.strike(2)\nprint('whole', file=sys.stderr)\n"
    )
    body = "    sys.modules['driver'] = sys.modules['__main__']\n    import native, time\n    time.sleep(60)"
    assert run(tmp_path, body, "SIGINT") == (130, "", f"whole\n{MESSAGE}")


def test_a_signal_during_the_message(tmp_path: Path) -> None:
    ahead = """
class Struck:
    def write(self, text):
        strike(signal.SIGINT)
        return sys.__stderr__.write(text)
    def isatty(self):
        return False
    def flush(self):
        pass
sys.stderr = Struck()
"""
    assert run(tmp_path, "    raise MemoryError", "SIGINT", ahead)[0] in (1, 130)
    code, _, err = run(tmp_path, "    strike(scope['number'])", "SIGTERM", ahead)
    assert (code, err) == (130, MESSAGE)


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """A shell that starts a program in the background makes it ignore Ctrl-C, nohup SIGHUP."""
    ahead = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    assert run(tmp_path, PLACES["in the open"], "SIGINT", ahead) == (0, "the report\n", "")


def test_the_caller_of_main_gets_its_handlers_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["doctor"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_interrupts_are_remembered() -> None:
    """In a process of its own: a handler that failed would end the one that runs the tests."""
    program = """
        import signal
        from qdq.base.interrupt import Interrupted, Interrupts

        interrupts = Interrupts()
        interrupts.start()
        try:
            signal.raise_signal(signal.SIGTERM)
        except Interrupted:
            assert interrupts.received
        else:
            raise SystemExit("nothing was raised")
        interrupts.over = True
        signal.raise_signal(signal.SIGTERM)
        interrupts.restore()
        print("over")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")
