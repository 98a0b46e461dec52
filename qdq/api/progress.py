"""Progress of a compile for Python callers: events instead of lines on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Progress:
    """One event of a compile.

    Attributes:
        stage: its name, such as ``calibrate``; the README's table of stages has them all.
        done: finished steps of the stage.
        total: all of its steps, None while that is not known.
        seconds: since the stage began.
        result: one line about what the stage found, "" while it runs.
    """

    stage: str
    done: int
    total: int | None
    seconds: float
    result: str = ""

    @property
    def finished(self) -> bool:
        """True for the last event of a stage."""
        return bool(self.result)


Callback: TypeAlias = Callable[[Progress], None]
