"""Figures of a load: throughput, percentiles of the response time, refusals by status; as a table and as a picture."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.client.load import Call
from qdq.base.picture import new_figure, save_figure

WIDTH = 80
PERCENTILES = {"p50": (50, 1), "p90": (90, 10), "p99": (99, 100)}  # name: percentile, fewest answers it is taken from


def figures_of(calls: Sequence[Call]) -> dict[str, Any]:
    """Figures of one load. Times are milliseconds of answered requests; a percentile of too few answers is None."""
    answered = [call for call in calls if call.outputs is not None]
    times = np.array([1000 * call.seconds for call in answered])
    elapsed = max((call.sent + call.seconds for call in calls), default=0.0)
    latency = {
        name: float(np.percentile(times, percentile)) if len(times) >= fewest else None
        for name, (percentile, fewest) in PERCENTILES.items()
    }
    refused = Counter(str(call.status) for call in calls if call.outputs is None)
    return {
        "requests": len(calls),
        "answered": len(answered),
        "errors": dict(sorted(refused.items())),
        "seconds": elapsed,
        "texts_per_s": len(answered) / elapsed if elapsed else 0.0,
        "latency_ms": latency,
    }


def render_load(report: Mapping[str, Any]) -> str:
    """The report of `qdq load` as a table, 80 columns wide."""
    lines = [
        f"{report['model']} at {report['url']}, {report['texts']} texts of their own lengths",
        "",
        "clients  texts/s   p50 ms   p90 ms   p99 ms   batch  CPU ms/text  errors  wrong",
    ]
    for run in report["runs"]:
        latency = run["latency_ms"]
        times = " ".join(_cell(latency[name], 8, 1) for name in PERCENTILES)
        wrong = run.get("check", {}).get("wrong")
        lines.append(
            f"{run['clients']:>7} {run['texts_per_s']:>8.1f} {times} {_cell(run['batches']['mean_batch'], 7, 2)}"
            f" {_cell(run['cpu_ms_per_text'], 12, 2)} {sum(run['errors'].values()):>7} {_cell(wrong, 6, 0)}"
        )
    lines += ["", *(_wrapped(note) for note in _notes(report))]
    return "\n".join(lines) + "\n"


def _notes(report: Mapping[str, Any]) -> list[str]:
    """Lines below the table: reasons of errors, the check, the engine by itself."""
    notes: list[str] = []
    for run in report["runs"]:
        notes += [f"clients {run['clients']}: {message}" for message in run["messages"]]
    for run in report["runs"]:
        if (direct := run.get("direct_cpu_ms_per_text")) and run["cpu_ms_per_text"]:
            notes.append(
                f"clients {run['clients']}: {run['cpu_ms_per_text'] / direct:.2f} x the CPU time of the engine by "
                f"itself on batches of 16 texts sorted by length, {direct:.2f} ms per text before and after"
            )
    if check := report.get("check"):
        notes.append(f"answers are compared with {check['engine']}, {check['rule']}")
    else:
        notes.append("answers were not checked: --check DIR compares each with the engine's of that work directory")
    if report["runs"] and report["runs"][0]["cpu_ms_per_text"] is None:
        notes.append("CPU time is known where the server runs on this machine under this user")
    return notes


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"


def draw_load(report: Mapping[str, Any], path: Path) -> Path:
    """Write a PNG: response times and throughput over the number of clients. Raises DeployError when it cannot."""
    figure = new_figure(9, 3.8)
    left, right = figure.subplots(1, 2)
    clients = [run["clients"] for run in report["runs"]]
    places = range(len(clients))
    for name in PERCENTILES:
        known = [(at, run["latency_ms"][name]) for at, run in enumerate(report["runs"])]
        points = [(at, value) for at, value in known if value is not None]
        left.plot([at for at, _ in points], [value for _, value in points], marker="o", label=name)
    left.set_ylabel("response time, ms")
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    bars = right.bar(places, [run["texts_per_s"] for run in report["runs"]], color="#4477aa")
    right.bar_label(bars, fmt="%.0f")
    right.set_ylabel("texts per second")
    for axes in (left, right):
        axes.set_xticks(list(places), [str(count) for count in clients])
        axes.set_xlabel("clients")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{report['model']} over {report['url'].partition(':')[0]}")
    return save_figure(figure, path)
