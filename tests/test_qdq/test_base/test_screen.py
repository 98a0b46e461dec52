"""What a run shows fits 80 columns, and warnings are shown once."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from qdq.base.notice import NOTICE
from qdq.base.screen import LOG_SECONDS, WIDTH, Screen, logged_to, wrap

END = "end of the screen"
LONG = "/a/path/that/nobody/may/break/" + "x" * 90


def shown(screen_use: str) -> str:
    return " ".join(screen_use.split())


def test_wrap_keeps_words_and_lines() -> None:
    text = wrap(f"first {'word ' * 30}\n  - item with-a-hyphen {LONG} end", 4)
    assert all(len(line) <= WIDTH or LONG in line for line in text.splitlines())
    assert LONG in text
    assert text.splitlines()[1].startswith("    word")
    assert shown(text) == shown(f"first {'word ' * 30}\n  - item with-a-hyphen {LONG} end")


def test_stage_lines() -> None:
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        screen = Screen()
        with screen.stage("build") as stage:
            stage.progress(1, 2)
            stage.say("[bold]result[/bold] " + "word " * 20)
        screen.skipped("verify")
        screen.row("target", "openvino")
        screen.row("width-7of12+ptq", "1130.0 s")
    lines = err.getvalue().splitlines()
    assert all(len(line) <= WIDTH for line in lines)
    assert re.match(r"  build        [ \d]\d\.\d s  \[bold\]result\[/bold\] word", lines[0])  # text, not markup
    assert lines[1].startswith(" " * 23 + "word")
    assert lines[-1] == "  width-7of12+ptq 1130.0 s"  # a long name does not run into its text
    assert lines[-2] == "  target      openvino"
    assert lines[-3].split() == ["verify", "up", "to", "date"]


def test_a_log_gets_a_line_now_and_then_with_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    err = io.StringIO()
    with contextlib.redirect_stderr(err), Screen().stage("calibrate") as stage:
        for done in range(1, 5):
            now[0] += 0.6 * LOG_SECONDS
            stage.progress(done, 8)
        for _ in range(3):  # rounds of a budget of time: nothing new to say
            now[0] += 2 * LOG_SECONDS
            stage.progress(4, 8)
        stage.progress(8, 8)
        stage.say("128 texts")
    lines = [line.split(maxsplit=1) for line in err.getvalue().splitlines()]
    assert lines == [
        ["calibrate", f"25 %, about {3.6 * LOG_SECONDS:.0f} s left"],
        ["calibrate", f"50 %, about {2.4 * LOG_SECONDS:.0f} s left"],
        ["calibrate", f"{8.4 * LOG_SECONDS:.1f} s  128 texts"],
    ]


def test_colours_are_left_out_when_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, coloured in (("FORCE_COLOR", True), ("NO_COLOR", False)):
        monkeypatch.setenv(name, "1")
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            Screen().warn("3 rows skipped")
        assert ("\x1b[33m" in err.getvalue()) is coloured, name


@pytest.mark.parametrize(("name", "coloured"), [("NO_COLOR", False), ("TERM", True)])
def test_a_terminal_shows_a_bar_and_no_colour_where_none_is_wanted(
    monkeypatch: pytest.MonkeyPatch, name: str, coloured: bool
) -> None:
    for variable in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv(name, "xterm-256color")
    reader, writer = os.openpty()
    with os.fdopen(writer, "w") as terminal, contextlib.redirect_stderr(terminal), ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_everything, reader)  # beside it: a terminal holds 4 kB
        screen = Screen()
        screen.warn("3 rows skipped")
        with screen.stage("build") as stage:
            stage.progress(1, 2)
        terminal.write(END)
        terminal.flush()
        shown = reading.result()
    os.close(reader)
    assert b"\x1b[?25l" in shown and "━".encode() in shown  # a bar that is drawn anew
    assert bool(re.search(rb"\x1b\[[0-9;]+m", shown)) is coloured


def _everything(reader: int) -> bytes:
    shown = b""
    while not shown.endswith(END.encode()):
        shown += os.read(reader, 4096)
    return shown


def test_a_failing_stage_shows_no_result() -> None:
    err = io.StringIO()
    with contextlib.redirect_stderr(err), pytest.raises(ValueError, match="broken"), Screen().stage("build"):
        raise ValueError("broken")
    assert err.getvalue() == ""


def test_a_stage_that_says_nothing_of_itself_says_in_a_log_that_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdq.base.screen.LOG_SECONDS", 0.01)
    err = io.StringIO()
    with contextlib.redirect_stderr(err), Screen().stage("build"):
        while err.getvalue().count("\n") < 2:
            time.sleep(0.01)
    assert all(line.startswith("  build       0 s so far") for line in err.getvalue().splitlines()[:2])


def test_a_stage_of_a_known_time_moves_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdq.base.screen.LOG_SECONDS", 0.0)
    monkeypatch.setattr("qdq.base.screen.CLOCK_SECONDS", 0.01)
    err = io.StringIO()
    with contextlib.redirect_stderr(err), Screen().stage("load", undisturbed=True, lasting=1000.0):
        while not err.getvalue():
            time.sleep(0.01)
    assert " s left" in err.getvalue().splitlines()[0]


def test_a_notice_is_shown_and_is_no_warning() -> None:
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        screen = Screen()
        with logged_to(screen):
            logging.getLogger("qdq.loading.hub").log(NOTICE, "downloading %s", "org/name")
    logging.getLogger("qdq.loading.hub").log(NOTICE, "not shown")
    assert (err.getvalue(), screen.warnings) == ("  downloading org/name\n", [])


def test_warnings_are_shown_once_and_kept() -> None:
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        screen = Screen()
        with logged_to(screen):
            for _ in range(2):
                logging.getLogger("qdq.text.data").warning("%d rows skipped", 3)
            logging.getLogger("engines.triton").info("written")
            screen.warn("3 rows skipped")
        logging.getLogger("qdq.text.data").info("not shown")
    assert err.getvalue() == "warning: 3 rows skipped\n"
    assert screen.warnings == ["3 rows skipped"]


def test_a_brief_stage_is_silent_unless_it_took_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        with Screen().stage("check", brief=True):
            pass
        assert err.getvalue() == ""
        monkeypatch.setattr("qdq.base.screen.SHORT_SECONDS", 0.0)
        with Screen().stage("check", brief=True):
            pass
    assert err.getvalue().startswith("  check")
