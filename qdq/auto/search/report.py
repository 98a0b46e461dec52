"""Reports of a search: report.json, report.md, the picture of speed against loss, the screen's table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdq.auto.search.choice import lost
from qdq.base.artifacts import write_json, write_text
from qdq.base.picture import new_figure, save_figure
from qdq.base.screen import WIDTH, Screen, wrap

JSON, MARKDOWN, PICTURE = "report.json", "report.md", "pareto.png"
Report = Mapping[str, Any]
HEADERS = ("engine", "ms", "speed-up", "95 %", "choose", "judge", "95 %")


def write_report(folder: Path, report: Report) -> None:
    """Write report.json, report.md and pareto.png."""
    write_json(folder / JSON, dict(report))
    write_text(folder / MARKDOWN, markdown(report))
    draw(report, folder / PICTURE)


def rows(report: Report) -> list[list[str]]:
    """Cells under `HEADERS`: FP32, then the engines from slow to fast; the chosen one has a star.

    Speed-ups are over the whole model's INT8 engine; points lost are negative.
    """
    found = [["fp32", _ms(report["fp32"]), *_speed(report["fp32"]), *_values(report["fp32"])]]
    for entry in sorted(report["engines"], key=lambda one: float(one["ratio"]["value"])):
        name = entry["name"] + (" *" if entry["name"] == report["chosen"] else "")
        judged = entry["judging"]
        points = [f"{entry['choosing']['difference_points']:+.2f}", f"{judged['difference_points']:+.2f}"]
        around = f"{judged['low_points']:+.1f} {judged['high_points']:+.1f}"
        found.append([name, _ms(entry), *_speed(entry), *points, around])
    return found


def _ms(entry: Report) -> str:
    return f"{entry['p50_ms']:.4g}"


def _speed(entry: Report) -> list[str]:
    ratio = entry["ratio"]
    return [f"{ratio['value']:.2f}", f"{ratio['low']:.2f}-{ratio['high']:.2f}" if entry["samples"] else "estimate"]


def _values(entry: Report) -> list[str]:
    return [f"{entry['choosing']['value']:.4f}", f"{entry['judging']['value']:.4f}", ""]


def notes(report: Report) -> list[str]:
    """Sentences about the table: what was chosen and why, which rows, on what it was timed."""
    # Conditions of the race
    raced, chosen = report["race"], next(one for one in report["engines"] if one["name"] == report["chosen"])
    shape = f"batch {raced['batch']} x sequence {raced['sequence']}"
    where = (
        f"{raced['rounds']} interleaved rounds at {shape}, full rows, {raced['threads']} threads, "
        f"{raced['machine']['cpu']}"
        if raced["measured"]
        else f"estimated for {raced['device']} at {shape}, no GPU here"
    )
    judged = lost(chosen, "judging")
    kept = f"{report['chosen']} is kept: {report['why']}"
    absent = [] if raced["measured"] else ["this machine cannot build it; its folder has what a GPU machine needs"]
    return [
        f"{kept}. On the judging rows, which chose nothing, it loses {judged:.2f} points",
        f"{_sides(report)}; {report['metric']}, points against FP32",
        f"speed-up: over the whole model's INT8 engine, {where}",
        f"{report['spent_s']:.0f} s of {report['settings']['budget']:.0f} s were spent on jobs",
        *absent,
    ]


def _sides(report: Report) -> str:
    """Numbers of rows that choose and that judge, and where they are from."""
    choosing, judging = (report["fp32"][side]["samples"] for side in ("choosing", "judging"))
    if test := report["settings"].get("test"):
        return f"all {choosing} development rows choose, {judging} rows of {Path(test).name} judge"
    return f"{choosing} development rows choose (odd ones), {judging} judge (even ones)"


def grouped(not_tried: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Reasons for candidates that have no engine, each with the names it holds for."""
    found: dict[str, list[str]] = {}
    for name, reason in not_tried.items():
        found.setdefault(reason, []).append(name)
    return list(found.items())


def show(screen: Screen, report: Report) -> None:
    """Print the table and its notes, at most 80 columns wide."""
    table = [list(HEADERS), *rows(report)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADERS))]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else " "
    screen.line()
    for row in table:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        screen.line(gap.join(cells).rstrip())
    screen.line()
    for note in notes(report):
        screen.line(wrap(f"{note}.", 2))
    if not_tried := grouped(report["not_tried"]):
        screen.line("\nnot tried:")
        for reason, names in not_tried:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            screen.line(wrap(f"  {names[0]}{more}: {reason}", 4))
    screen.line(f"\n{report['deployed']}")


def markdown(report: Report) -> str:
    """The report as a page."""
    table = ["| " + " | ".join(cells) + " |" for cells in (HEADERS, ["---", *["---:"] * (len(HEADERS) - 1)])]
    table += ["| " + " | ".join(cells) + " |" for cells in rows(report)]
    tried = [f"- {one['name']}: {one['why'] or 'the base'}" for one in report["engines"]]
    reasons = [f"- {', '.join(names)}: {reason}" for reason, names in grouped(report["not_tried"])]
    parts = [
        f"# Automatic compression of {report['model']}",
        "\n".join(table),
        "\n".join(f"- {note}." for note in notes(report)),
        f"![speed against points lost]({PICTURE})",
        "## Tried, in this order, and why",
        "\n".join(tried),
        "## Not tried, and why",
        "\n".join(reasons) or "Everything was tried.",
    ]
    return "\n\n".join(parts) + "\n"


def draw(report: Report, path: Path) -> Path:
    """Speed-up against points lost on the judging rows; engines that no other beats on the choosing rows are joined."""
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    points = {one["name"]: (one["ratio"]["value"], lost(one, "judging")) for one in report["engines"]}
    for one in report["engines"]:
        speed, drop = points[one["name"]]
        judged = one["judging"]
        error = [[drop + judged["high_points"]], [-judged["low_points"] - drop]]
        chosen = one["name"] == report["chosen"]
        axes.errorbar(speed, drop, yerr=error, fmt="o", color="tab:red" if chosen else "tab:blue", capsize=3)
        axes.annotate(one["name"], (speed, drop), textcoords="offset points", xytext=(6, 4), fontsize=8)
    front = [points[name] for name in report["pareto"]]
    axes.plot([x for x, _ in front], [y for _, y in front], color="tab:gray", linewidth=1)
    axes.axhline(report["settings"]["max_drop"], color="tab:green", linestyle="--", linewidth=1)
    axes.set_xlabel("times as fast as the whole model's INT8 engine")
    axes.set_ylabel(f"points of {report['metric']} lost, judging rows")
    axes.set_title(f"{report['model']}: kept {report['chosen']}")
    return save_figure(figure, path)
