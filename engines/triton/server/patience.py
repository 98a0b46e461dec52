"""A limit of waiting for a process that gets on slowly where the machine is busy, but is not stuck."""

from __future__ import annotations

import time

from engines.client.statistics import cpu_seconds

WORK = 1.0  # CPU seconds of the process and its children that count as getting on; answering takes milliseconds
MOST = 5  # times the limit that it may work without getting anywhere


class Patience:
    """Ends `seconds` after the last sign that a process gets on: `renew`, or CPU time that it used meanwhile.

    One that only works, and is never renewed, has MOST times the limit in CPU seconds.
    """

    def __init__(self, process: int, seconds: float) -> None:
        self._process, self._seconds = process, seconds
        self.renew()

    def renew(self) -> None:
        """Begin anew: something was reached."""
        self._from = self._worked()
        self._extend(self._from)

    def is_over(self) -> bool:
        """True when the process neither got on nor worked in the last `seconds`."""
        if time.monotonic() <= self._until:
            return False
        worked = self._worked()
        if worked - self._seen < WORK or worked - self._from > MOST * self._seconds:
            return True
        self._extend(worked)
        return False

    def _extend(self, worked: float) -> None:
        self._seen, self._until = worked, time.monotonic() + self._seconds

    def _worked(self) -> float:
        return cpu_seconds(self._process) or 0.0
