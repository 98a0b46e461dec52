"""The engine that is kept, and why: the fastest whose loss on the rows that choose is allowed. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Z95 = 1.96  # standard errors from the middle to an end of a 95 % interval
TIE = 0.02  # engines whose speed differs by no more are equally fast: a race of other rounds may turn them around


@dataclass(frozen=True)
class Raced:
    """A finished engine: points lost on the rows that choose, and how much faster it is than the base."""

    name: str
    drop: float
    speed: float


@dataclass(frozen=True)
class Choice:
    """The engine that is kept, the sentence that says why, and whether it is within the allowed drop."""

    name: str
    why: str
    within: bool


def choose(raced: Sequence[Raced], max_drop: float) -> Choice:
    """The fastest of `raced` within the drop; where none is, the one that loses least. `raced` is not empty.

    Of equally fast ones the one that loses least counts, of equals the earlier.
    """
    within = [one for one in raced if one.drop <= max_drop]
    if not within:
        best = min(raced, key=lambda one: (one.drop, -one.speed))
        lost = f"no engine loses at most {max_drop:g} points on the choosing rows; {best.name} loses least"
        return Choice(best.name, f"{lost}, {best.drop:.2f}", within=False)
    fastest = max(one.speed for one in within)
    best = min((one for one in within if one.speed >= fastest * (1 - TIE)), key=lambda one: one.drop)
    why = (
        f"the fastest of {len(within)} engines within {max_drop:g} points on the choosing rows ({best.drop:+.2f} lost)"
    )
    faster = [one for one in raced if one.speed > fastest]
    if faster:
        nearest = min(faster, key=lambda one: one.drop)
        why += f"; {len(faster)} faster ones lose more, the nearest, {nearest.name}, {nearest.drop:.2f}"
    return Choice(best.name, why, within=True)


def pareto(raced: Sequence[Raced]) -> list[str]:
    """Names of the engines that none beats in both speed and loss, slowest first."""

    def beaten(one: Raced) -> bool:
        return any(
            other.speed >= one.speed and other.drop <= one.drop and (other.speed, -other.drop) != (one.speed, -one.drop)
            for other in raced
        )

    return [one.name for one in sorted(raced, key=lambda one: one.speed) if not beaten(one)]


def lost(result: Mapping[str, Any], side: str) -> float:
    """Points that a job's engine has lost against FP32 on one side's rows."""
    return 0.0 - float(result[side]["difference_points"])


def error(result: Mapping[str, Any], side: str) -> float:
    """Standard error of those points, from their 95 % interval."""
    found = result[side]
    return float(found["high_points"] - found["low_points"]) / (2 * Z95)
