"""Clock of the timing core: moments are recorded as events, and the time between two events is asked for later.

A GPU records an event when it gets there, long after the host asked for it.
"""

from __future__ import annotations

from typing import Any, Protocol

Event = Any  # handed out by a clock; only that clock (or one of the same device) can read it


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
