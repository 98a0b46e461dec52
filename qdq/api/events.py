"""A screen for Python callers: events in the place of lines on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from qdq.api.progress import Callback, Progress
from qdq.base.screen import Screen, Stage


class EventScreen(Screen):
    """A screen that draws nothing: it keeps the warnings, and hands what happens to a callback."""

    def __init__(self, callback: Callback | None) -> None:
        super().__init__()
        self._callback = callback or (lambda event: None)

    def line(self, text: str = "") -> None:
        """Draw nothing."""

    def warn(self, text: str) -> None:
        """Keep a warning, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    @contextmanager
    def stage(
        self, name: str, undisturbed: bool = False, lasting: float | None = None, brief: bool = False
    ) -> Iterator[Stage]:
        """Report the beginning, every step and the result of a stage."""
        stage = _ReportedStage(name, self._callback)
        yield stage
        stage.close()

    def skipped(self, name: str) -> None:
        """Report a stage whose files are still valid."""
        self._callback(Progress(name, 1, 1, 0.0, "up to date"))


class _ReportedStage(Stage):
    """A stage whose progress goes to the callback."""

    def __init__(self, name: str, callback: Callback) -> None:
        self.result = ""
        self._name, self._callback = name, callback
        self._done, self._total = 0, None  # type: tuple[int, int | None]
        self._started = time.perf_counter()
        self._report()

    def progress(self, done: float, total: float) -> None:
        """Report one step."""
        self._done, self._total = int(done), int(total)
        self._report()

    def close(self) -> None:
        """Report the result."""
        self._done = self._total = self._total or 1
        self._report(self.result or "done")

    def _report(self, result: str = "") -> None:
        seconds = time.perf_counter() - self._started
        self._callback(Progress(self._name, self._done, self._total, seconds, result))
