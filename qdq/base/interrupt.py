"""Ctrl-C and SIGTERM: one exception for both, raised in the main thread but never in the middle of an import.

Files are written whole or not at all (`qdq.base.artifacts`), so a run may end anywhere. An import may not: an exception
inside the start of a C++ library is turned into another error (numpy) or ends the process with a core dump (torch), and
imports are the first seconds of a run. A signal that comes then is looked at again every `IMPORT_SECONDS`.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

HAS_TIMER = hasattr(signal, "setitimer")  # not on Windows, where a signal during an import is raised at once
SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGALRM,) if HAS_TIMER else ()))
IMPORT_SECONDS = 0.1


class Interrupted(KeyboardInterrupt):
    """The user or the system wants the run to end.

    A class of its own: once a plain KeyboardInterrupt has left a string that is executed (dataclasses, torch.fx do
    that), `python -m` ends itself with SIGINT whatever the program returns, even when it was caught
    (`unhandled_keyboard_interrupt` in CPython's pythonrun.c).
    """


class Interrupts:
    """The signal handler of one run.

    Attributes:
        received: a signal has come; an error behind it may be what foreign code has made of the interruption.
        over: nothing is left to interrupt; further signals are ignored.
    """

    def __init__(self) -> None:
        self.received = False
        self.over = False
        self._before: dict[signal.Signals, Any] = {}

    def start(self) -> None:
        """Handle the signals, except one that this process was started to ignore."""
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self)

    def restore(self) -> None:
        """Give the handlers back to whoever had them."""
        if HAS_TIMER:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ignore(self) -> None:
        """Ignore signals while the process ends: that takes Python up to a second, mostly outside our code."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raise Interrupted, now or as soon as the import that is going on has ended."""
        if self.over:
            return
        self.received = True
        if HAS_TIMER and _importing(frame):
            signal.setitimer(signal.ITIMER_REAL, IMPORT_SECONDS)
        else:
            raise Interrupted


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
