"""Ctrl-C and SIGTERM: one exception for both, that passes through every cleanup and comes again when it gets lost."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
IMPORT_SECONDS = 0.1
AGAIN_SECONDS = 3.0  # no cleanup takes that long


class Interrupted(KeyboardInterrupt):
    """The user or the system wants the run to end.

    A class of its own: once a plain KeyboardInterrupt has left a string that is executed (dataclasses, torch.fx do
    that), `python -m` ends itself with SIGINT whatever the program returns, even when it was caught
    (`unhandled_keyboard_interrupt` in CPython's pythonrun.c).
    """


class Interrupts:
    """The signal handler of one run.

    It waits for the end of an import: an exception inside the start of a C++ library is made another error (numpy)
    or ends the process with a core dump (torch). It strikes again while the run goes on, because foreign code may
    swallow the exception.

    Attributes:
        received: a signal has come; an error behind it may be what foreign code has made of the interruption.
        over: nothing is left to interrupt; further signals are ignored.
    """

    def __init__(self) -> None:
        self.received = False
        self.over = False
        self._before: dict[signal.Signals, Any] = {}
        self._hook = sys.unraisablehook

    def start(self) -> None:
        """Handle both signals, except one that this process was started to ignore."""
        sys.unraisablehook = self._unraisable
        for number in (*SIGNALS, signal.SIGALRM):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self)

    def restore(self) -> None:
        """Give the handlers back to whoever had them."""
        sys.unraisablehook = self._hook
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ignore(self) -> None:
        """Let the process end in peace: that takes python up to a second, most of it without any handler of ours."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raise Interrupted, now or as soon as the import that is going on has ended."""
        if self.over:
            return
        self.received = True
        importing = _importing(frame)
        signal.setitimer(signal.ITIMER_REAL, IMPORT_SECONDS if importing else AGAIN_SECONDS)
        if not importing:
            raise Interrupted

    def _unraisable(self, report: Any) -> None:
        """What is raised inside __del__ goes nowhere: it will come again, and a traceback helps nobody."""
        if not issubclass(report.exc_type, Interrupted):
            self._hook(report)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
