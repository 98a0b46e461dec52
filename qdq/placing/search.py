"""`--search`: every unit ranked, every prefix of the ranking run, the cheapest within the allowed drop chosen.

Decisions are made on training rows only; what the chosen placement loses on evaluation rows is `verify`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdq.base.picture import new_figure, save_figure
from qdq.placing.auto import BOUND, Choice, Step, gain_reason
from qdq.placing.costs import cost_of
from qdq.placing.sensitivity.probe import Probe
from qdq.placing.units import Unit

LONGEST = 32  # units left out at most; a placement without more than that is better asked for by name


@dataclass(frozen=True)
class Tried:
    """One point of the trade-off curve: `dropped` leading units of the ranking in floating point.

    Attributes:
        cost: predicted latency it adds, in shares of one layer with everything quantized.
        divergence: from floating point, on the search rows.
        drop_points: of the task metric on the search rows, in points; None without labels.
        within: whether it is within what was asked for.
        measured: as `cost`, by an engine that was built and timed; None where none was.
    """

    dropped: int
    cost: float
    divergence: float
    drop_points: float | None
    within: bool
    measured: float | None = None


@dataclass(frozen=True)
class Search:
    """The whole curve; `best` is None when nothing is within `limit`, `closest` is then what comes nearest."""

    curve: tuple[Tried, ...]
    ranking: tuple[tuple[str, float, float], ...]
    limit: float
    by: str
    samples: int
    best: int | None
    closest: int

    def as_json(self) -> dict[str, Any]:
        """The content of search.json."""
        return {
            "by": self.by,
            "limit": self.limit,
            "samples": self.samples,
            "best": self.best,
            "closest": self.closest,
            "curve": [vars(tried) for tried in self.curve],
            "ranking": [{"unit": name, "gain": gain, "cost": cost} for name, gain, cost in self.ranking],
        }


def search(
    probe: Probe,
    units: Sequence[Unit],
    costs: Mapping[str, float],
    max_drop: float | None,
    progress: Callable[[int, int], None],
) -> tuple[Search, Choice]:
    """Run the curve. `max_drop` in points of the task metric; None (no labels) bounds the divergence instead.

    The returned choice is the best one's, or the closest one's.
    """
    everything = frozenset(probe.names)
    probe.remember(everything)
    total = len(units) + min(LONGEST, len(units)) + 1
    whole = probe.trial(everything).divergence
    gains: dict[str, float] = {}
    for done, unit in enumerate(units, start=1):
        gains[unit.name] = whole - probe.trial(everything - frozenset(unit.points)).divergence
        progress(done, total)
    ranked = sorted(units, key=lambda unit: (-gains[unit.name] / cost_of(unit.kind, costs), unit.name))[:LONGEST]
    floating = probe.trial((), metric=True).metric if max_drop is not None else None
    curve: list[Tried] = []
    for count in range(len(ranked) + 1):
        gone = {point for unit in ranked[:count] for point in unit.points}
        trial = probe.trial(everything - gone, metric=max_drop is not None)
        drop = None if floating is None or trial.metric is None else 100 * (floating - trial.metric)
        within = trial.divergence <= BOUND if drop is None or max_drop is None else drop <= max_drop
        cost = sum(cost_of(unit.kind, costs) for unit in ranked[:count])
        curve.append(Tried(count, cost, trial.divergence, drop, within))
        progress(len(units) + count + 1, total)
    fitting = [tried for tried in curve if tried.within]
    best = min(fitting, key=lambda tried: (tried.cost, tried.divergence)) if fitting else None
    closest = min(curve, key=lambda tried: (_distance(tried), tried.cost))
    chosen = best or closest
    found = Search(
        curve=tuple(curve),
        ranking=tuple((unit.name, gains[unit.name], cost_of(unit.kind, costs)) for unit in ranked),
        limit=BOUND if max_drop is None else max_drop,
        by="divergence" if max_drop is None else "metric",
        samples=probe.samples,
        best=None if best is None else best.dropped,
        closest=closest.dropped,
    )
    reasons = {unit.name: gain_reason(unit, whole, gains[unit.name]) for unit in ranked[: chosen.dropped]}
    steps = tuple(Step(tried.dropped, tried.cost, tried.divergence) for tried in curve)
    bound = max(BOUND, chosen.divergence)
    return found, Choice(reasons, whole, chosen.divergence, bound, steps, total)


def _distance(tried: Tried) -> float:
    return tried.divergence if tried.drop_points is None else tried.drop_points


def plot_curve(found: Search, path: Path) -> Path:
    """PNG of accuracy against predicted and, where engines were timed, measured latency: a dot per placement tried."""
    panels: list[tuple[str, Callable[[Tried], float | None], bool]]
    panels = [("divergence, search rows", lambda tried: tried.divergence, found.by == "divergence")]
    if found.by == "metric":
        panels.insert(0, ("drop in points, search rows", lambda tried: tried.drop_points, True))
    figure = new_figure(5.5 * len(panels), 4.5)
    for axes, (label, loss, limited) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.plot([t.cost for t in found.curve], [loss(t) for t in found.curve], ".-", label="predicted latency")
        timed = [tried for tried in found.curve if tried.measured is not None]
        if timed:
            label_of_timed = "measured latency, the same placements"
            axes.plot(
                [t.measured for t in timed], [loss(t) for t in timed], "s", color="tab:orange", label=label_of_timed
            )
        if limited:
            axes.axhline(found.limit, color="tab:red", linestyle="--", label="limit")
        if found.best is not None:
            best = found.curve[found.best]
            axes.plot(best.cost, loss(best), "o", color="tab:green", label="best")
        axes.set_xlabel("latency added, in layers with everything quantized")
        axes.set_ylabel(label)
        axes.set_ylim(top=axes.get_ylim()[1] * 1.45)  # room for the legend above every dot
        axes.grid(visible=True, alpha=0.3)
        axes.legend(loc="upper right", fontsize=8)
    return save_figure(figure, path)
