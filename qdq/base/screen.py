"""Output of a run on standard error while it works: stage lines, progress bars and notes, at most 80 columns wide."""

from __future__ import annotations

import logging
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Event, Thread

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qdq.base.notice import NOTICE

WIDTH = 80
NAME = 12  # columns of a stage's or setting's name
REDRAW_SECONDS = 0.5
LOG_SECONDS = 10.0  # between the lines that stand for a bar where nothing can be redrawn, such as in a log
SHORT_SECONDS = 2.0  # a command that is done by then says nothing of its progress
CLOCK_SECONDS = 1.0  # between the steps of a stage that lasts a known time


def wrap(text: str, indent: int = 0) -> str:
    """`text` in lines of at most 80 columns, later ones indented; words and paths are never broken."""
    lines = [
        textwrap.fill(line, WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
        for line in text.splitlines()
    ]
    return "\n".join(lines)


class Stage:
    """The running stage: `say` sets its result text, `progress` moves its bar."""

    def __init__(self, bar: Progress, log: Callable[[str], None] | None = None) -> None:
        self._bar = bar
        self._log = log
        self._task = bar.add_task("", total=None)
        self._started = self._logged = time.perf_counter()
        self._said = 0.0
        self._known = False  # how far it is
        self._drawn = 0.0
        self.result = ""

    def say(self, result: str) -> None:
        """The text behind the stage's name when it is done."""
        self.result = result

    def tick(self, lasting: float | None) -> None:
        """Move a stage that lasts so many seconds; of one that says nothing of itself, say in a log that it works."""
        seconds = time.perf_counter() - self._started
        if lasting is not None:
            self.progress(min(seconds, lasting), lasting)
        elif self._log is not None and not self._known:
            self._log(f"{seconds:.0f} s so far")

    def progress(self, done: float, total: float) -> None:
        """Move the bar, and draw it when nothing else does; without a terminal, say so in a line now and then."""
        now = time.perf_counter()
        if self._log is not None and self._said < done < total and now - self._logged > LOG_SECONDS:
            self._log(f"{100 * done / total:.0f} %, about {(now - self._started) * (total / done - 1):.0f} s left")
            self._logged, self._said = now, done
        self._known = True
        due = time.perf_counter() - self._drawn > REDRAW_SECONDS
        self._bar.update(self._task, completed=done, total=total, refresh=due and not self._bar.live.auto_refresh)
        if due:
            self._drawn = time.perf_counter()


class Screen:
    """Stage lines and notes; keeps the warnings it has shown."""

    def __init__(self) -> None:
        # soft_wrap: lines are wrapped here, and rich would break paths in files and pipes
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.warnings: list[str] = []

    def line(self, text: str = "") -> None:
        """Print a line as it is."""
        self.console.print(text, markup=False)

    def row(self, name: str, text: str, indent: int = 0) -> None:
        """Print a name and its text; further lines stand below the text, `indent` columns in."""
        self.line(wrap(f"  {name + ' ':<{NAME}}{text}", NAME + 2 + indent))

    def warn(self, text: str) -> None:
        """Print a warning, once."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.console.print(wrap(f"warning: {text}", 2), markup=False, style="yellow")

    @contextmanager
    def stage(
        self, name: str, undisturbed: bool = False, lasting: float | None = None, brief: bool = False
    ) -> Iterator[Stage]:
        """Show a bar while the block runs and one line when it is done.

        `undisturbed` draws only when the block reports progress: the thread that draws otherwise would wake up inside
        what a benchmark times. `lasting`: the seconds the block takes, where they are known; it reports nothing then.
        `brief`: the line is left out of a block that took less than two seconds.
        """
        started = time.perf_counter()
        columns = (
            TextColumn(f"  {name + ' ':<{NAME}}", markup=False),
            BarColumn(bar_width=40),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
        )
        hidden = not self.console.is_terminal
        options = {"transient": True, "disable": hidden, "auto_refresh": not undisturbed, "refresh_per_second": 4}
        with Progress(*columns, console=self.console, **options) as bar:  # type: ignore[arg-type]
            stage = Stage(bar, partial(self.row, name) if hidden else None)
            every = LOG_SECONDS if lasting is None else CLOCK_SECONDS
            with _ticking(every, partial(stage.tick, lasting), idle=undisturbed and lasting is None):
                yield stage
        elapsed = time.perf_counter() - started
        if not brief or elapsed >= SHORT_SECONDS:
            self.row(name, f"{elapsed:5.1f} s  {stage.result}", 9)

    def skipped(self, name: str) -> None:
        """One line for a stage whose files are still valid."""
        self.row(name, "         up to date")


@contextmanager
def _ticking(seconds: float, tick: Callable[[], None], idle: bool) -> Iterator[None]:
    """Call `tick` every so many seconds while the block runs, from a thread of its own; never when `idle`."""
    over = Event()

    def run() -> None:
        while not over.wait(seconds):
            tick()

    thread = None if idle else Thread(target=run, daemon=True)
    if thread is not None:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread is not None:
            thread.join()


class LogToScreen(logging.Handler):
    """Shows what modules log as warnings or notices on a Screen."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(NOTICE)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        if record.levelno >= logging.WARNING:
            self._screen.warn(record.getMessage())
        else:
            self._screen.line(wrap(f"  {record.getMessage()}", 2))


@contextmanager
def logged_to(screen: Screen) -> Iterator[None]:
    """Show the warnings and notices our packages log on `screen` while the block runs."""
    handler = LogToScreen(screen)
    loggers = [logging.getLogger(name) for name in ("qdq", "export", "engines")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(NOTICE)
        logger.propagate = False  # pytorch-quantization's absl puts a handler of its own on the root logger
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = True
