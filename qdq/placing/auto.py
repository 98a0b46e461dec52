"""Choose the units to leave in floating point from signal-to-noise ratios and a counted number of divergence checks.

The same model and text give the same answer on every machine: the budget is counted in multiplications, never in
seconds. At `FLOPS` a second, which two cores of a current server reach, it is at most `SECONDS`.

Units are ranked by what leaving out that one alone takes off the divergence of the whole, not by their damage when only
they are quantized: errors of the two operands of a residual add cancel or amplify one another. On minilm-mrpc no
feed-forward residual hurts alone, and together they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdq.placing.costs import cost_of
from qdq.placing.sensitivity.probe import Probe
from qdq.placing.units import Unit

SECONDS = 20.0
FLOPS = 4.0e10  # fake-quantized, on two cores of a current server
# Mean divergence (nats per answer) up to which a placement is kept as it is, and the factor of what quantizing the
# linears alone costs below which nothing can be gained by leaving out anything else.
BOUND = 0.001
FLOOR_FACTOR = 2.0
WORTHLESS = 0.01  # a unit that takes off less than this share of the whole is not worth leaving out
MOST = 16  # units that may be left out


@dataclass(frozen=True)
class Step:
    """One placement that was tried: how much was left out, what it cost and what was left of the damage."""

    dropped: int
    cost: float
    divergence: float


@dataclass(frozen=True)
class Choice:
    """What `choose` decided.

    Attributes:
        dropped: unit -> reason, in the order they were dropped.
        before, after: divergence of everything, and of what is left.
        bound: what was asked for; `after` may be above it when dropping more would not help.
        curve: the placements tried on the way.
        checks: divergence checks made.
    """

    dropped: Mapping[str, str]
    before: float
    after: float
    bound: float
    curve: tuple[Step, ...]
    checks: int

    def as_json(self) -> dict[str, Any]:
        """The ``auto`` object of placement.json."""
        return {
            "divergence_all": self.before,
            "divergence": self.after,
            "bound": self.bound,
            "met": self.after <= self.bound,
            "checks": self.checks,
            "dropped_units": dict(self.dropped),
            "curve": [{"dropped": s.dropped, "cost": s.cost, "divergence": s.divergence} for s in self.curve],
        }


def affordable_checks(parameters: int, tokens: int) -> int:
    """How many runs of the model over `tokens` positions fit the budget; at least 12."""
    return max(12, int(SECONDS * FLOPS / (2.0 * parameters * max(tokens, 1))))


def choose(
    probe: Probe,
    units: Sequence[Unit],
    costs: Mapping[str, float],
    checks: int,
    progress: Callable[[int, int], None] | None = None,
    fewer: Callable[[], Probe] | None = None,
) -> Choice:
    """The units to leave out so that the divergence of the rest is within the bound, least cost first.

    Linears stay: what they cost is the floor that the rest is judged by (`--search` tries them, too).
    Units are ranked by gain over cost; the shortest prefix of that ranking within the bound is taken, or the one with
    the least divergence when none is, and units it turns out not to need are taken back, dearest first. Every placement
    that is judged was run. Where `checks` do not reach for every unit, `fewer` makes a probe of fewer texts that ranks
    more of them.
    """
    judge = _Judge(probe, checks, progress)
    everything = frozenset(probe.names)
    probe.remember(everything)
    before = judge(everything)
    linears = frozenset(point for unit in units if unit.kind.startswith("linear") for point in unit.points)
    bound = max(BOUND, FLOOR_FACTOR * judge(linears)) if before > BOUND else BOUND
    if before <= bound:
        return Choice({}, before, before, bound, (Step(0, 0.0, before),), judge.checks)
    others = [unit for unit in units if not unit.kind.startswith("linear")]
    gains = _gains(judge, probe, others, before, fewer)
    ranked = sorted(
        (unit for unit in units if gains.get(unit.name, 0.0) > WORTHLESS * before),
        key=lambda unit: (-gains[unit.name] / cost_of(unit.kind, costs), unit.name),
    )[:MOST]
    steps = [Step(0, 0.0, before)]
    while steps[-1].divergence > bound and steps[-1].dropped < len(ranked) and judge.left > 0:
        gone = ranked[: steps[-1].dropped + 1]
        left = judge(everything - {point for unit in gone for point in unit.points})
        steps.append(Step(len(gone), sum(cost_of(unit.kind, costs) for unit in gone), left))
    best = min(steps, key=lambda step: (max(step.divergence, bound), step.dropped))
    kept, left = _taken_back(judge, everything, ranked[: best.dropped], (costs, bound), best.divergence)
    reasons = {unit.name: gain_reason(unit, before, gains[unit.name]) for unit in kept}
    return Choice(reasons, before, left, bound, tuple(steps), judge.checks)


def gain_reason(unit: Unit, whole: float, gain: float) -> str:
    """Why a unit is left out, for placement.json."""
    return (
        f"auto: leaving it out alone takes the divergence of all points from {whole:.2g} to {whole - gain:.2g}; "
        f"{unit.loses}"
    )


class _Judge:
    """Divergence of a set of points, counted in runs over all texts."""

    def __init__(self, probe: Probe, allowed: int, progress: Callable[[int, int], None] | None) -> None:
        self._probe, self._allowed, self._progress = probe, allowed, progress
        self._made = 0.0

    def __call__(self, enabled: frozenset[str], probe: Probe | None = None) -> float:
        """By another probe, which may have fewer texts, when one is given."""
        self.count(probe)
        return (probe or self._probe).trial(enabled).divergence

    def count(self, probe: Probe | None = None) -> None:
        """Count one run."""
        self._made += 1 if probe is None else probe.samples / self._probe.samples
        if self._progress is not None:
            self._progress(min(self.checks, self._allowed), self._allowed)

    @property
    def checks(self) -> int:
        """Made so far."""
        return math.ceil(self._made)

    @property
    def left(self) -> int:
        """Checks the budget still has."""
        return self._allowed - self.checks


def _gains(
    judge: _Judge, probe: Probe, units: Sequence[Unit], before: float, fewer: Callable[[], Probe] | None
) -> dict[str, float]:
    """Gain of the units with the worst signal-to-noise ratios; a third of the budget is left for what follows.

    Gains over fewer texts are stated in shares of `before`.
    """
    everything, room = frozenset(probe.names), max(4, 2 * judge.left // 3)
    if room < len(units) and fewer is not None:
        judged = fewer()
        judge.count(judged)  # its answers in floating point
        judged.remember(everything)
        judge.count(judged)
        whole = judge(everything, judged)
        room = max(4, int((room - 3 * judged.samples / probe.samples) * probe.samples / judged.samples))
    else:
        judged, whole = probe, before
    noise = judged.signal_to_noise()
    worst = sorted(units, key=lambda unit: (min(noise[point] for point in unit.points), unit.name))[:room]
    gains = {unit.name: whole - judge(everything - frozenset(unit.points), judged) for unit in worst}
    return {name: gain * before / whole for name, gain in gains.items()} if whole > 0 else {}


def _taken_back(
    judge: _Judge,
    everything: frozenset[str],
    gone: Sequence[Unit],
    terms: tuple[Mapping[str, float], float],
    left: float,
) -> tuple[list[Unit], float]:
    """Quantize units again that the bound does not need, dearest first, while checks last."""
    (costs, bound), kept = terms, list(gone)
    if left > bound:
        return kept, left
    for unit in sorted(gone, key=lambda unit: (-cost_of(unit.kind, costs), unit.name)):
        if judge.left <= 0:
            break
        fewer = [other for other in kept if other is not unit]
        again = judge(everything - {point for other in fewer for point in other.points})
        if again <= bound:
            kept, left = fewer, again
    return kept, left
