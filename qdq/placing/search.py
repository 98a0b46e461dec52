"""Decide which units stay in floating point: `choose` within a counted number of checks, `search` over everything.

`choose` is `--placement auto`. The same model and text give the same answer on every machine: the budget is counted in
multiplications, never in seconds. At `FLOPS` a second, which two cores of a current server reach, it is at most
`SECONDS`. `search` is `--search`. Its decisions are made on training rows only; the loss on evaluation rows is measured
by `verify`.

Both rank units by what leaving out that one alone takes off the divergence of the whole, not by their damage when only
they are quantized: errors of the two operands of a residual add cancel or amplify one another. On minilm-mrpc no
feed-forward residual hurts alone, and together they do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qdq.base.types import Progress
from qdq.placing.sensitivity.probe import Probe
from qdq.placing.units import Unit

SECONDS = 20.0
FLOPS = 4.0e10  # fake-quantized, on two cores of a current server
# Mean divergence (nats per answer) up to which a placement is kept as it is, and the factor of what quantizing the
# linears alone costs below which nothing can be gained by leaving out anything else.
BOUND = 0.001
FLOOR_FACTOR = 2.0
WORTHLESS = 0.01  # a unit that takes off less than this share of the whole is not worth leaving out
MOST = 16  # units that `choose` leaves out at most
LONGEST = 32  # units that `search` leaves out at most; a placement with fewer points is better asked for by name


@dataclass(frozen=True)
class Tried:
    """One placement that was run: the first `dropped` units of a ranking in floating point."""

    dropped: int
    cost: float  # predicted latency it adds, in shares of one layer with everything quantized
    divergence: float  # from floating point
    drop_points: float | None  # of the task metric, in points; None where that was not measured
    within: bool  # the limit that was asked for
    measured: float | None = None  # as `cost`, by an engine that was built and timed; None where none was
    kernels: float = 0.0  # predicted to be added to the compiled engine, where that is known
    megabytes: float = 0.0  # likewise, of what all its kernels read and write
    compiled_kernels: int | None = None  # of the whole engine as compiled; None where none was
    compiled_megabytes: float | None = None


@dataclass(frozen=True)
class Decision:
    """The units that stay in floating point."""

    dropped: Mapping[str, str]  # unit -> reason, in the order they were dropped
    before: float  # divergence with everything quantized
    after: float  # divergence without the dropped units
    bound: float  # on the divergence; `after` may be above it when dropping more would not help
    curve: tuple[Tried, ...]  # the placements tried on the way
    checks: int  # divergence checks made

    def as_json(self) -> dict[str, Any]:
        """The ``auto`` object of placement.json."""
        return {
            "divergence_all": self.before,
            "divergence": self.after,
            "bound": self.bound,
            "met": self.after <= self.bound,
            "checks": self.checks,
            "dropped_units": dict(self.dropped),
            "curve": [{"dropped": t.dropped, "cost": t.cost, "divergence": t.divergence} for t in self.curve],
        }


@dataclass(frozen=True)
class Ranked:
    """One unit of the ranking: what leaving it out alone takes off the divergence, and its predicted cost."""

    unit: str
    gain: float
    cost: float


@dataclass(frozen=True)
class Search:
    """The whole curve; `best` is None when nothing is within `limit`, `closest` is then what comes nearest.

    `target_kind` and `about`: the targets that costs are for, and where they come from.
    """

    curve: tuple[Tried, ...]
    ranking: tuple[Ranked, ...]
    limit: float
    by: str
    samples: int
    best: int | None
    closest: int
    target_kind: str = "cpu"
    about: str = ""

    def as_json(self) -> dict[str, Any]:
        """The content of search.json."""
        return asdict(self)


def by_gain(units: Iterable[Unit], gains: Mapping[str, float]) -> list[Unit]:
    """Order units by the divergence that leaving out each takes off, over its cost; best first."""
    return sorted(units, key=lambda unit: (-gains[unit.name] / unit.cost, unit.name))


def without(points: Iterable[str], gone: Iterable[Unit]) -> frozenset[str]:
    """The points that are left when the units `gone` are floating point."""
    return frozenset(points).difference(*(unit.points for unit in gone))


def reasons(gone: Iterable[Unit], whole: float, gains: Mapping[str, float]) -> dict[str, str]:
    """Unit -> why it is left out, for placement.json."""
    return {
        unit.name: f"auto: leaving it out alone takes the divergence of all points from {whole:.2g} to "
        f"{whole - gains[unit.name]:.2g}; {unit.loses}"
        for unit in gone
    }


def affordable_checks(parameters: int, tokens: int) -> int:
    """Runs of the model over `tokens` positions that the budget allows; at least 12."""
    return max(12, int(SECONDS * FLOPS / (2.0 * parameters * max(tokens, 1))))


@dataclass
class _Budget:
    """Divergence checks, counted in texts: a run over all `samples` of them is one check."""

    allowed: int
    samples: int
    progress: Progress | None
    texts: int = 0

    def divergence(self, probe: Probe, enabled: Collection[str], runs: int = 1) -> float:
        """Divergence with exactly `enabled` quantized, at the price of `runs` runs of `probe`."""
        self.texts += runs * probe.samples
        if self.progress is not None:
            self.progress(min(self.checks, self.allowed), self.allowed)
        return probe.trial(enabled).divergence

    @property
    def checks(self) -> int:
        """Checks made so far."""
        return -(-self.texts // self.samples)

    @property
    def left(self) -> int:
        """Checks that may still be made."""
        return self.allowed - self.checks


def choose(
    probe: Probe,
    units: Sequence[Unit],
    checks: int,
    progress: Progress | None = None,
    fewer: Callable[[], Probe] | None = None,
) -> Decision:
    """Choose the units to leave out so that the divergence of the rest is within the bound, least cost first.

    Linears stay: what they cost is the floor that the rest is judged by (`search` tries them, too). The shortest prefix
    of the ranking within the bound is taken, or the one with the least divergence when none is, and units it turns out
    not to need are taken back, dearest first. Every placement that is judged was run. Where `checks` do not reach for
    every unit, `fewer` makes a probe of fewer texts that ranks more of them.
    """
    budget = _Budget(checks, probe.samples, progress)
    before = budget.divergence(probe, probe.names)
    linears = [unit for unit in units if unit.kind.startswith("linear")]
    others = [unit for unit in units if unit not in linears]
    bound = BOUND
    if before > BOUND:
        floor = budget.divergence(probe, [point for unit in linears for point in unit.points])
        bound = max(BOUND, FLOOR_FACTOR * floor)
    # Rank, unless everything can stay quantized.
    gains: dict[str, float] = {}
    ranked: list[Unit] = []
    if before > bound:
        gains = _gains(budget, probe, others, before, fewer)
        worthwhile = [unit for unit in others if gains.get(unit.name, 0.0) > WORTHLESS * before]
        ranked = by_gain(worthwhile, gains)[:MOST]
    # Leave out one more at a time until the bound is met or the budget is spent.
    curve = [_tried((), before, None, before <= bound)]
    while not curve[-1].within and len(curve) <= len(ranked) and budget.left > 0:
        gone = ranked[: len(curve)]
        left = budget.divergence(probe, without(probe.names, gone))
        curve.append(_tried(gone, left, None, left <= bound))
    # Take the best of these, and quantize again what it does not need.
    best = min(curve, key=lambda tried: (max(tried.divergence, bound), tried.dropped))
    kept, after = ranked[: best.dropped], best.divergence
    if best.within:
        kept, after = _taken_back(budget, probe, kept, after, bound)
    return Decision(reasons(kept, before, gains), before, after, bound, tuple(curve), budget.checks)


def _tried(gone: Sequence[Unit], divergence: float, drop: float | None, within: bool) -> Tried:
    """The placement without the units `gone`, with what leaving out each of them costs."""
    return Tried(
        len(gone),
        sum(unit.cost for unit in gone),
        divergence,
        drop,
        within,
        kernels=sum(unit.kernels for unit in gone),
        megabytes=sum(unit.megabytes for unit in gone),
    )


def _gains(
    budget: _Budget, probe: Probe, units: Sequence[Unit], before: float, fewer: Callable[[], Probe] | None
) -> dict[str, float]:
    """Gain of the units with the worst signal-to-noise ratios; a third of the budget is left for what follows.

    Gains over fewer texts are stated in shares of `before`.
    """
    judged, whole, room = probe, before, max(4, 2 * budget.left // 3)
    if room < len(units) and fewer is not None:
        judged = fewer()
        whole = budget.divergence(judged, judged.names, runs=3)  # with the two that it starts with
        room = max(4, int((room - 3 * judged.samples / probe.samples) * probe.samples / judged.samples))
    noise = judged.signal_to_noise()
    worst = sorted(units, key=lambda unit: (min(noise[point] for point in unit.points), unit.name))[:room]
    gains = {unit.name: whole - budget.divergence(judged, without(judged.names, [unit])) for unit in worst}
    return {name: gain * before / whole for name, gain in gains.items()} if whole > 0 else {}


def _taken_back(
    budget: _Budget, probe: Probe, gone: Sequence[Unit], divergence: float, bound: float
) -> tuple[list[Unit], float]:
    """Quantize units again that the bound does not need, dearest first, while checks last."""
    kept = list(gone)
    for unit in sorted(gone, key=lambda unit: (-unit.cost, unit.name)):
        if budget.left <= 0:
            break
        rest = [other for other in kept if other is not unit]
        again = budget.divergence(probe, without(probe.names, rest))
        if again <= bound:
            kept, divergence = rest, again
    return kept, divergence


def search(probe: Probe, units: Sequence[Unit], max_drop: float | None, progress: Progress) -> tuple[Search, Decision]:
    """Run the curve. `max_drop` in points of the task metric; None (no labels) bounds the divergence instead.

    The returned decision is the best one's, or the closest one's.
    """
    by_metric, limit = max_drop is not None, BOUND if max_drop is None else max_drop
    total = len(units) + min(LONGEST, len(units)) + 1
    # Rank by what leaving out each unit alone brings.
    whole = probe.trial(probe.names).divergence
    gains: dict[str, float] = {}
    for done, unit in enumerate(units, start=1):
        gains[unit.name] = whole - probe.trial(without(probe.names, [unit])).divergence
        progress(done, total)
    ranked = by_gain(units, gains)[:LONGEST]
    # Leave out one more at a time.
    floating = probe.trial((), metric=True).metric if by_metric else None
    curve: list[Tried] = []
    for count in range(len(ranked) + 1):
        gone = ranked[:count]
        trial = probe.trial(without(probe.names, gone), by_metric)
        drop = None if floating is None or trial.metric is None else 100 * (floating - trial.metric)
        within = (trial.divergence if drop is None else drop) <= limit
        curve.append(_tried(gone, trial.divergence, drop, within))
        progress(len(units) + count + 1, total)
    # Take the cheapest that is within the limit.
    best = min((t for t in curve if t.within), key=lambda t: (t.cost, t.divergence), default=None)
    closest = min(curve, key=lambda t: (t.divergence if t.drop_points is None else t.drop_points, t.cost))
    chosen = best or closest
    ranking = tuple(Ranked(unit.name, gains[unit.name], unit.cost) for unit in ranked)
    by, dropped = "metric" if by_metric else "divergence", None if best is None else best.dropped
    found = Search(tuple(curve), ranking, limit, by, probe.samples, dropped, closest.dropped)
    why, bound = reasons(ranked[: chosen.dropped], whole, gains), max(BOUND, chosen.divergence)
    return found, Decision(why, whole, chosen.divergence, bound, found.curve, total)
