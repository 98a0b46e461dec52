"""Two compiles side by side: their summaries, times on one scale, accuracy, and every point and option that differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from qdq.report.facts import INT8, Facts
from qdq.report.html import element, fixed, megabytes, number, paragraph, section, table, text
from qdq.report.page import document, menu, shown
from qdq.report.words import closeness, cost, coverage, gain, machine, tiles

FLOAT = "-fp32"  # in the name of an FP32 contestant
DIGEST = 12  # characters of a hash that are shown
OWN = ("out", "timing_cache")  # options that always differ, or tell nothing


def render_comparison(one: Facts, two: Facts) -> str:
    """The page of two compiles as HTML; A is the first, B the second."""
    sides = (("A", one), ("B", two))
    head = element(
        "header",
        paragraph("two compiles side by side", class_="kind"),
        element("h1", text(f"{one.name} · {one.target} and {two.name} · {two.target}")),
        menu((("figures", "Figures"), ("speed", "Speed"), ("points", "Points"), ("options", "Options"))),
    )
    summaries = "".join(
        element("div", element("h2", text(f"{letter}: {facts.folder} ({facts.target})")), shown(tiles(facts)))
        for letter, facts in sides
    )
    return document(
        f"{one.name} and {two.name}",
        head,
        element("div", summaries, class_="pair"),
        _figures(one, two),
        _speed(sides),
        _points(one, two),
        _options(one, two),
    )


def _figures(one: Facts, two: Facts) -> str:
    rows = [(text(name), text(read(one)), text(read(two))) for name, read in _READ]
    metrics = [(facts.get("accuracy") or {}).get("metrics", {}) for facts in (one, two)]
    for name in sorted(metrics[0].keys() | metrics[1].keys()):
        rows.append((text(f"{name}, INT8 (FP32)"), _metric(metrics[0].get(name)), _metric(metrics[1].get(name))))
    different = [facts.get("accuracy") for facts in (one, two)]
    note = ""
    if all(different) and different[0]["source"] != different[1]["source"]:  # type: ignore[index]
        note = paragraph("Accuracy is on different texts: the two columns are not one experiment.", class_="warn")
    return section("figures", "Figures", table(("", "A", "B"), rows), note)


def _metric(entry: Mapping[str, Any] | None) -> str:
    return f"{entry['int8']:.4f} ({entry['fp32']:.4f})" if entry else "–"


def _first(read: Callable[[Facts], tuple[str, str]]) -> Callable[[Facts], str]:
    return lambda facts: read(facts)[0]


def _p50(facts: Facts) -> str:
    report = facts.get("benchmark")
    return f"{number(report['contestants']['int8']['latency_ms']['p50'], 4)} ms" if report else "–"


def _agreement(facts: Facts) -> str:
    report = facts.get("accuracy")
    return "–" if report is None or report["agreement"] is None else f"{report['agreement']:.2%}"


_READ: Sequence[tuple[str, Callable[[Facts], str]]] = (
    ("encoder linears in INT8", _first(coverage)),
    (
        "attention in INT8",
        lambda facts: f"{facts.coverage.attention[0]} of {facts.coverage.attention[1]}" if facts.coverage else "–",
    ),
    ("points quantized", lambda facts: str(sum(1 for point in facts.points if point["placed"]))),
    ("costs", _first(cost)),
    ("closeness to FP32", lambda facts: closeness(facts.get("accuracy")) if facts.get("accuracy") else "–"),
    ("same answers as FP32", _agreement),
    ("INT8, full rows", _p50),
    ("speed over the best FP32, on texts", _first(gain)),
    ("engine", lambda facts: megabytes(facts.sizes[0]) if facts.sizes[0] else "–"),
)


def _speed(sides: Sequence[tuple[str, Facts]]) -> str:
    """Times of both, each in percent of the fastest FP32 of its own run: a busy machine slows down both."""
    content = []
    for title, part in (("Full rows", ""), ("Texts as they are", "texts")):
        rows = [row for letter, facts in sides for row in _shares(letter, _contestants(facts, part))]
        content += [element("h3", title), _share_bars(rows)] if rows else []
    said = [f"{letter}: {machine(facts)}." for letter, facts in sides]
    machines = [facts.get("benchmark") for _, facts in sides]
    if all(machines) and machines[0]["machine"]["cpu"] != machines[1]["machine"]["cpu"]:  # type: ignore[index]
        said.append("They were timed on different machines: compare ratios, not milliseconds.")
    elif all(machines):
        said.append("They were timed in two runs: compare ratios, milliseconds only with care.")
    if content:
        said.append("A bar is the median of a batch in percent of the fastest FP32 of the same run: shorter is faster.")
    return section("speed", "Speed", paragraph(*said), *content)


def _shares(letter: str, entries: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
    """Contestant and side, percent of the fastest FP32's time, and the times in words."""
    times = {name: entry["latency_ms"]["p50"] for name, entry in entries.items()}
    fastest = min((name for name in times if FLOAT in name), key=lambda name: times[name], default=None)
    for name, entry in entries.items() if fastest else ():
        percent = 100 * times[name] / times[str(fastest)]
        said = f"{percent:.1f} % of {fastest}: {number(times[name], 4)} ms, {entry['samples']} samples"
        yield f"{name} · {letter}", percent, said


def _share_bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """Bars on one scale: the contestants, the fastest first, A above B."""
    longest = max(percent for _, percent, _ in rows)
    best: dict[str, float] = {}
    for name, percent, _ in rows:
        best[name[:-1]] = min(percent, best.get(name[:-1], percent))
    shown = []
    for name, percent, said in sorted(rows, key=lambda row: (best[row[0][:-1]], row[0])):
        mine = name.startswith(INT8)
        bar = element("i", style=f"width:{100 * percent / longest:.2f}%")
        shown += [
            element("div", f"<b>{text(name)}</b>" if mine else text(name)),
            element("div", bar, class_="bar int8" if mine else "bar", title=f"{name}: {said}"),
            element("div", text(said), class_="v"),
        ]
    return element("div", *shown, class_="bars")


def _contestants(facts: Facts, part: str) -> Mapping[str, Any]:
    """Contestants of a workload: the benchmark's own, or those of its `part`."""
    report = facts.get("benchmark") or {}
    found: Mapping[str, Any] = (report.get(part, {}) if part else report).get("contestants", {})
    return found


def _points(one: Facts, two: Facts) -> str:
    """Points whose state differs, with both reasons; and those whose range does."""
    left, right = ({point["name"]: point for point in facts.points} for facts in (one, two))
    rows = []
    for name in dict.fromkeys((*left, *right)):
        states = [_state(side.get(name)) for side in (left, right)]
        if states[0][0] != states[1][0]:
            rows.append((text(name), *(text(": ".join(filter(None, state))) for state in states)))
    found = list(_ranges(one, two))
    said = paragraph(f"{len(rows)} points are in another state, {len(found)} of those in both have another range.")
    content = [said]
    content += [table(("point", "A", "B"), rows)] if rows else []
    content += (
        [element("h3", "amax that differ most"), table(("point", "A", "B", "B ÷ A"), found[:20], (1, 2, 3))]
        if found
        else []
    )
    return section("points", "Points", *content)


def _state(point: Mapping[str, Any] | None) -> tuple[str, str]:
    if point is None:
        return "not there", ""
    return "INT8" if point["placed"] else "float", str(point["reason"])


def _ranges(one: Facts, two: Facts) -> Iterator[tuple[str, str, str, str]]:
    left, right = ((facts.get("calibration") or {}).get("activations", {}) for facts in (one, two))
    shared = [(name, left[name]["amax"], right[name]["amax"]) for name in left if name in right]
    changed = [entry for entry in shared if entry[1] != entry[2] and min(entry[1:]) > 0]
    for name, a, b in sorted(changed, key=lambda entry: -max(entry[1] / entry[2], entry[2] / entry[1])):
        yield text(name), number(a, 4), number(b, 4), fixed(b / a, 3)


def _options(one: Facts, two: Facts) -> str:
    """Options and versions that differ."""
    rows = []
    for kind, left, right in (
        ("option", one.options, two.options),
        ("version", one.manifest.get("versions", {}), two.manifest.get("versions", {})),
    ):
        for name in dict.fromkeys((*left, *right)):
            if left.get(name) != right.get(name) and name not in OWN:
                rows.append((kind, text(name), *(text(_short(side.get(name, "–"))) for side in (left, right))))
    content = table(("", "name", "A", "B"), rows) if rows else paragraph("Options and versions are the same.")
    return section("options", "Options and versions that differ", content)


def _short(value: Any) -> Any:
    """The value; of a hash its beginning."""
    return f"{value[:DIGEST]}…" if isinstance(value, str) and len(value) == 64 else value
