"""Picture of a search: what each placement that was tried loses, and what it costs on its targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qdq.base.picture import new_figure, save_figure
from qdq.placing.search import Search

Values = Sequence[float | None]
LATENCY = "latency added, in layers with everything quantized"
MEGABYTES = "MB added to what the engine's kernels read and write"
KERNELS = "kernels added to the engine"


def plot_curve(found: Search, path: Path) -> Path:
    """PNG of accuracy against predicted and, where engines were built, found costs: a dot per placement tried.

    On a CPU the cost is latency; for TensorRT it is bytes and kernels of the compiled engine.
    """
    losses: list[tuple[str, Values, bool]]
    losses = [("divergence, search rows", [tried.divergence for tried in found.curve], found.by == "divergence")]
    if found.by == "metric":
        losses.insert(0, ("drop in points, search rows", [tried.drop_points for tried in found.curve], True))
    axes_of_cost = _compiled(found) if found.target_kind == "tensorrt" else _latency(found)
    figure = new_figure(5.5 * len(losses), 4.5 * len(axes_of_cost))
    grid = figure.subplots(len(axes_of_cost), len(losses), squeeze=False)
    for row, (cost, predicted, measured, how) in zip(grid, axes_of_cost, strict=True):
        for axes, (label, loss, limited) in zip(row, losses, strict=True):
            axes.plot(predicted, loss, ".-", label="predicted")
            if any(added is not None for added in measured):
                axes.plot(measured, loss, "s", color="tab:orange", label=f"{how}, the same placements")
            if limited:
                axes.axhline(found.limit, color="tab:red", linestyle="--", label="limit")
            if found.best is not None:
                axes.plot(predicted[found.best], loss[found.best], "o", color="tab:green", label="best")
            axes.set_xlabel(cost)
            axes.set_ylabel(label)
            axes.set_ylim(top=axes.get_ylim()[1] * 1.45)  # room for the legend above every dot
            axes.grid(visible=True, alpha=0.3)
            axes.legend(loc="upper right", fontsize=8)
    return save_figure(figure, path)


def _latency(found: Search) -> list[tuple[str, Values, Values, str]]:
    """Label, predicted and found cost of every placement, and how the latter was found."""
    predicted, measured = ([getattr(tried, name) for tried in found.curve] for name in ("cost", "measured"))
    return [(LATENCY, predicted, measured, "measured")]


def _compiled(found: Search) -> list[tuple[str, Values, Values, str]]:
    """As `_latency`, twice: megabytes and kernels."""
    entries: list[tuple[str, Values, Values, str]] = []
    for label, name in ((MEGABYTES, "megabytes"), (KERNELS, "kernels")):
        totals = [getattr(tried, f"compiled_{name}") for tried in found.curve]
        first = totals[0]  # what is compiled at all begins with it
        added = [None if total is None or first is None else total - first for total in totals]
        entries.append((label, [getattr(tried, name) for tried in found.curve], added, "compiled"))
    return entries
