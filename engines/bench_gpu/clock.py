"""Clocks of the timing core: moments are recorded as events, and the time between two events is asked for later.

On a GPU an event is recorded by the device when it gets there, long after the host asked for it. On the host, recording
reads the clock at once and nothing has to be waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

Event = Any  # what a clock hands out; only that clock (or one of the same device) can read it


class EventClock(Protocol):
    """Events on one stream of launches. Times are milliseconds."""

    def event(self) -> Event:
        """A new event, reusable: recording it again overwrites the moment."""
        ...

    def record(self, event: Event) -> None:
        """Ask for `event` to be recorded when everything launched before has ended."""
        ...

    def elapsed(self, start: Event, end: Event) -> float:
        """Milliseconds from `start` to `end`; both must have been recorded and waited for."""
        ...

    def synchronize(self, event: Event) -> None:
        """Wait on the host until `event` has been recorded."""
        ...


@dataclass
class HostEvent:
    """A moment of the host's clock, in nanoseconds."""

    moment: int = 0


class HostClock:
    """Events of a synchronous callable, timed by the host's monotonic clock."""

    def __init__(self, now: Callable[[], int] = time.perf_counter_ns) -> None:
        self._now = now

    def event(self) -> HostEvent:
        return HostEvent()

    def record(self, event: HostEvent) -> None:
        event.moment = self._now()

    def elapsed(self, start: HostEvent, end: HostEvent) -> float:
        return (end.moment - start.moment) / 1e6

    def synchronize(self, event: HostEvent) -> None:
        """Nothing to wait for: the callable has returned."""
