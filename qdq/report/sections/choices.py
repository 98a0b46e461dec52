"""Sensitivity and trade-off, where they were measured: which points cost accuracy, and what leaving them out costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qdq.report.facts import INT8, Facts
from qdq.report.html import details, element, number, paragraph, section, table, text
from qdq.report.words import interval_of

SHOWN = 15
DIVERGENCES = {"kl": "Kullback-Leibler divergence from FP32's"}  # in words that are not a key's
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 600, 300, 56, 44, 14


def sensitivity(facts: Facts) -> str:
    """Section "Sensitivity"; "" when it was not measured."""
    report = facts.get("sensitivity")
    if report is None:
        return ""
    whole, floating = report["everything"], report["floating"]
    content = [
        paragraph(
            f"Over {report['samples']} samples of {report['source']}. Everything quantized moves the answers by "
            f"{number(whole['divergence'])} ({DIVERGENCES.get(report['divergence'], report['divergence'])}).",
            "" if floating["metric"] is None else f"The metric: {floating['metric']:.4f} to {whole['metric']:.4f}.",
            "A bar is what quantizing this alone does.",
        )
    ]
    for title, entries in (("Groups", report["groups"]), ("Points", report["points"])):
        if entries:
            content.append(element("h3", f"{title} that move the answers most") + _damages(entries[:SHOWN]))
    return section("sensitivity", "Sensitivity", *content)


def _damages(entries: Sequence[Mapping[str, Any]]) -> str:
    most = max((entry["damage"] for entry in entries), default=0) or 1.0
    rows = []
    for entry in entries:
        said = f"{number(entry['damage'])}; left out alone it takes off {number(entry['gain'])}"
        if "metric_damage_points" in entry:
            said += f"; {entry['metric_damage_points'] + 0.0:.2f} points lost"
        bar = element("i", style=f"width:{100 * max(entry['damage'], 0) / most:.2f}%")
        rows.append(
            element("div", text(entry["name"]))
            + element("div", bar, class_="bar loss", title=said)
            + element("div", text(said), class_="v")
        )
    return element("div", *rows, class_="bars")


def trade_off(facts: Facts) -> str:
    """Section "Trade-off": the placements a search tried, in percent of FP32's time and points lost; "" without one."""
    report = facts.get("search")
    if report is None or not report["curve"]:
        return ""
    # Every placement with a loss, and its time where one is known.
    lossy = "drop_points" if report["by"] == "metric" else "divergence"
    placed = [
        (tried, where)
        for tried in report["curve"]
        if tried.get(lossy) is not None and (where := _percent(facts, report, tried)) is not None
    ]
    unit = "points lost" if lossy == "drop_points" else "divergence from FP32"
    said = f"{len(report['curve'])} placements were tried on training rows; the limit was {report['limit']:g} ({unit})."
    how = "Full dots are of engines that were built and timed, rings are predicted."
    # The same as numbers.
    rows = [
        (str(tried["dropped"]), _mark(tried, report), number(tried[lossy]), "–" if not placed else _of(placed, tried))
        for tried in report["curve"]
        if tried.get(lossy) is not None
    ]
    listed = details(
        "all placements as numbers", table(("units left float", "", unit, "% of FP32's time"), rows, (0, 2, 3))
    )
    if not placed:
        return section(
            "trade-off",
            "Trade-off",
            paragraph(said, "Without a benchmark there is no time to show them against."),
            listed,
        )
    return section("trade-off", "Trade-off", paragraph(said, how), _plot(facts, report, placed, lossy, unit), listed)


def _mark(tried: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    best = report["best"] is not None and report["curve"][report["best"]] is tried
    return "chosen" if best else "within the limit" if tried["within"] else ""


def _of(placed: Sequence[tuple[Mapping[str, Any], float]], tried: Mapping[str, Any]) -> str:
    return next((f"{where:.1f}" for entry, where in placed if entry is tried), "–")


def _percent(facts: Facts, report: Mapping[str, Any], tried: Mapping[str, Any]) -> float | None:
    """Time of a placement in percent of the fastest FP32 engine's on full rows; None without a benchmark.

    The search counts in encoder layers of the fully quantized model; the benchmark has the chosen placement's time.
    """
    timed, depth = facts.get("benchmark"), _depth(facts)
    if timed is None or report["best"] is None or not depth:
        return None
    floats = [entry["latency_ms"]["p50"] for name, entry in timed["contestants"].items() if name.endswith("-fp32")]
    chosen = report["curve"][report["best"]]
    cost, base = _layers_added(tried), _layers_added(chosen)
    mine = timed["contestants"][INT8]["latency_ms"]["p50"]
    return float(100 * mine * (depth + cost) / (depth + base) / min(floats)) if floats else None


def _layers_added(tried: Mapping[str, Any]) -> float:
    """Time a placement adds, in layers: as an engine of it was timed, else as predicted."""
    return float(tried["cost"] if tried.get("measured") is None else tried["measured"])


def _depth(facts: Facts) -> int:
    from qdq.placing.units import layer_of

    return 1 + max((layer for point in facts.points if (layer := layer_of(point["name"])) is not None), default=-1)


def _plot(
    facts: Facts, report: Mapping[str, Any], placed: Sequence[tuple[Mapping[str, Any], float]], lossy: str, unit: str
) -> str:
    """Dots without a line between them: neighbours on the search's rows differ by chance."""
    metric = (facts.get("accuracy") or {}).get("metric") if lossy == "drop_points" else None
    final = interval_of(metric) if metric else None
    # The range of both axes.
    losses = [tried[lossy] for tried, _ in placed] + [0.0, *(final or ())]
    low, high = min(losses), max(max(losses), report["limit"] if lossy == "drop_points" else max(losses))
    margin = (high - low) * 0.08 or 0.1
    low, high = low - margin, high + margin
    right = max(104.0, max(where for _, where in placed) * 1.05)

    def at(percent: float, loss: float) -> tuple[float, float]:
        return LEFT + percent / right * (WIDTH - LEFT - 12), TOP + (high - loss) / (high - low) * (
            HEIGHT - TOP - BOTTOM
        )

    # A dot for each placement, FP32, and the chosen one on evaluation rows.
    marks = [_axes(at, right, low, high, unit)]
    for tried, where in placed:
        x, y = at(where, tried[lossy])
        kind = "dot" if tried.get("measured") is not None else "dot other"
        said = text(f"{tried['dropped']} units float: {where:.1f} % of FP32's time, {number(tried[lossy])} {unit}")
        marks.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{said}</title></circle>')
    x, y = at(100, 0)
    marks.append(f'<circle class="dot float" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
    marks.append(f'<text x="{x:.1f}" y="{y - 9:.1f}" text-anchor="middle">FP32</text>')
    if metric and final:
        mine = next((where for tried, where in placed if tried is report["curve"][report["best"]]), 0.0)
        x, y = at(mine, metric["drop_points"])
        ends = [at(mine, bound)[1] for bound in final]
        caps = "".join(f"M{x - 5:.1f} {end:.1f}h10" for end in ends)
        marks.append(f'<path class="whisker" d="M{x:.1f} {ends[0]:.1f}V{ends[1]:.1f}{caps}"/>')
        marks.append(f'<circle class="dot final" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
        marks.append(f'<text class="strong" x="{x + 9:.1f}" y="{ends[1] + 4:.1f}">chosen, on evaluation rows</text>')
    return f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="trade-off">{"".join(marks)}</svg>'


def _axes(at: Any, right: float, low: float, high: float, unit: str) -> str:
    """Both axes with round numbers, and the line of no loss."""
    bottom, middle = HEIGHT - BOTTOM, (LEFT + WIDTH) // 2
    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - 12}"/>']
    for percent in range(0, int(right) + 1, 25):
        parts.append(f'<text x="{at(percent, 0)[0]:.1f}" y="{bottom + 16}" text-anchor="middle">{percent} %</text>')
    for loss in _round_numbers(low, high):
        parts.append(f'<text x="{LEFT - 6}" y="{at(0, loss)[1] + 4:.1f}" text-anchor="end">{loss:g}</text>')
    if low < 0 < high:
        (x, y), (end, _) = at(0, 0), at(right, 0)
        parts.append(f'<path class="zero" d="M{x:.1f} {y:.1f}H{end:.1f}"/>')
    time = "time of a batch, percent of the fastest FP32"
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{time}</text>')
    place = f'x="{-(HEIGHT - BOTTOM + TOP) // 2}" y="13" text-anchor="middle" transform="rotate(-90)"'
    parts.append(f"<text {place}>{text(unit)}</text>")
    return "".join(parts)


def _round_numbers(low: float, high: float) -> list[float]:
    """Four to eight multiples of 1, 2 or 5 times a power of ten between both."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(step * place, 12) for place in range(first, last + 1)]
