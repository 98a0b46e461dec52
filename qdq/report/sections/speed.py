"""Latency: every contestant of both workloads as a bar with its percentiles, in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdq.report.facts import INT8, Facts
from qdq.report.html import element, fixed, number, paragraph, section, text
from qdq.report.words import machine

MARKS = ("p90", "p95", "p99")


def speed(facts: Facts) -> str:
    """Section "Speed"."""
    report = facts.get("benchmark")
    if report is None:
        return section("speed", "Speed", paragraph("Not timed: the engine was not run on this machine."))
    # What was timed and whether it pays, then both workloads.
    content = [
        paragraph(f"{machine(facts)}. Contestants take turns; a bar is the median, the ticks are higher percentiles.")
    ]
    if (verdict := facts.verdict) and not verdict["pays"]:
        content.append(
            paragraph(
                f"INT8 is not faster here: {verdict['best']} takes {verdict['texts']:.2f} of its time on texts.",
                class_="warn",
            )
        )
    content += [element("h3", "Full rows: every token is real"), bars(report["contestants"])]
    if texts := report.get("texts"):
        found = texts["workload"]
        said = (
            f"{found['mean_tokens']:.0f} tokens a text on average, padded to {report['sequence']} or cropped to the "
            "longest of the batch"
        )
        content += [element("h3", f"Texts as they are: {text(said)}"), bars(texts["contestants"])]
    content.append(_missing(report))
    return section("speed", "Speed", *content)


def bars(contestants: Mapping[str, Any]) -> str:
    """A bar for each contestant, the fastest first."""
    longest = max(max(filter(None, _times(entry)), default=0) for entry in contestants.values()) or 1.0
    ordered = sorted(contestants.items(), key=lambda item: item[1]["latency_ms"]["p50"])
    return element("div", *(_bar(name, entry, longest) for name, entry in ordered), class_="bars")


def _times(entry: Mapping[str, Any]) -> list[float | None]:
    return [entry["latency_ms"].get(name) for name in ("p50", *MARKS)]


def _bar(name: str, entry: Mapping[str, Any], longest: float) -> str:
    latency, mine = entry["latency_ms"], name.startswith(INT8)
    known = {mark: latency.get(mark) for mark in MARKS if latency.get(mark) is not None}
    ticks = "".join(
        element("b", style=f"left:{100 * value / longest:.2f}%", title=f"{mark} {number(value, 4)} ms")
        for mark, value in known.items()
    )
    if known:
        start, end = 100 * latency["p50"] / longest, 100 * max(known.values()) / longest
        ticks += element("s", style=f"left:{start:.2f}%;width:{end - start:.2f}%")
    inside = element("i", style=f"width:{100 * latency['p50'] / longest:.2f}%") + ticks
    others = ", ".join(f"{mark} {number(value, 4)}" for mark, value in known.items())
    said = f"{number(latency['p50'], 4)} ms" + (f" ({others})" if others else "")
    said += f", {fixed(entry['sequences_per_s'], 1)} texts/s, {entry['samples']} samples"
    return (
        element("div", f"<b>{text(name)}</b>" if mine else text(name))
        + element("div", inside, class_="bar int8" if mine else "bar", title=f"{name}: {said}")
        + element("div", text(said), class_="v")
    )


def _missing(report: Mapping[str, Any]) -> str:
    if report["contestants"][INT8]["latency_ms"].get("p99") is not None:
        return ""
    return paragraph(
        "p99 needs 100 samples of a contestant: the time budget of this compile gave fewer.", class_="soft"
    )
