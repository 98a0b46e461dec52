"""What a run shows while it works: stage lines, progress bars and notes, on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Report = Callable[[int, int], None]  # (done, total)


class Stage:
    """The running stage: `say` sets its result text, `progress` moves its bar."""

    def __init__(self, bar: Progress, title: str) -> None:
        self._bar = bar
        self._task = bar.add_task(title, total=None)
        self.result = ""

    def say(self, result: str) -> None:
        """The text behind the stage's name when it is done."""
        self.result = result

    def progress(self, done: int, total: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=done, total=total)


class Screen:
    """Stage lines and notes. `quiet` shows nothing but still accepts everything."""

    def __init__(self, quiet: bool = False) -> None:
        # 80 columns at least in files and pipes: rich would guess, and break lines of paths
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)

    def line(self, text: str = "") -> None:
        """Print a line as it is."""
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.console.print(f"warning: {text}", markup=False, style="yellow")

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Show a bar while the block runs and one line when it is done."""
        started = time.perf_counter()
        columns = (TextColumn(f"  {name:<10}"), BarColumn(bar_width=30), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            stage = Stage(bar, name)
            yield stage
        elapsed = time.perf_counter() - started
        self.line(f"  {name:<10}{stage.result}  ({elapsed:.1f} s)")

    def skipped(self, name: str) -> None:
        """One line for a stage whose files are still valid."""
        self.line(f"  {name:<10}up to date")
