"""Ranges of every point: the distribution of its values with the chosen clip, and the scales of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qdq.placing.units import layer_of
from qdq.report.facts import Facts
from qdq.report.html import details, element, number, paragraph, section, table, text
from qdq.report.sections.layers import anchor

WIDTH, HEIGHT = 220, 58
SHRINK = 0.4  # power of a count that its bar is high: rare values stay visible beside the bulk
LEAST = 2.0**-10  # of the largest magnitude: where a picture begins
OUTSIDE = "outside the layers"


def ranges(facts: Facts) -> str:
    """Section "Ranges"."""
    calibration, seen = facts.get("calibration"), facts.get("histograms")
    if calibration is None:
        return ""
    # What the ranges are of, then a picture of each, or the numbers alone.
    how = f"Ranges by {calibration['algorithm']}"
    how += (
        f" over {calibration['tokens']} tokens of {calibration.get('source', 'text')}."
        if calibration["tokens"]
        else "."
    )
    content = [paragraph(how)]
    if seen and seen["points"]:
        content.append(
            paragraph(
                f"Magnitudes of {seen['tokens']} tokens of {seen['samples']} calibration texts, on a logarithmic axis. "
                "The red line is amax, where values are clipped; a narrow bulk far left of it has few codes left."
            )
        )
        content.append(_pictures(facts, calibration, seen))
    else:
        content.append(
            paragraph(
                "No distributions were kept: the ranges came with the checkpoint, or the compile is an older one.",
                class_="soft",
            )
        )
        content.append(_amax_table(calibration))
    content.append(_weights(calibration))
    return section("ranges", "Ranges", *content)


def _pictures(facts: Facts, calibration: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    """Pictures of all points, one fold for each layer; the first is open."""
    folds: dict[str, list[str]] = {}
    for index, point in enumerate(facts.points):
        name = point["name"]
        if name in seen["points"] and name in calibration["activations"]:
            layer = layer_of(name)
            title = OUTSIDE if layer is None else f"layer {layer}"
            amax = calibration["activations"][name]["amax"]
            folds.setdefault(title, []).append(_figure(index, name, amax, seen["points"][name], seen["edges"]))
    opened = (
        details(title, element("div", *folds[title], class_="grid"), open_=place == 0)
        for place, title in enumerate(folds)
    )
    return "".join(opened)


def _figure(index: int, name: str, amax: float, seen: Mapping[str, Any], edges: Sequence[float]) -> str:
    said = f"amax {number(amax, 4)}, scale {number(amax / 127)}; largest seen {number(seen['largest'], 4)}"
    clipped = clipped_words(amax, seen, edges)
    caption = element("figcaption", text(name), element("div", text(f"{said}; {clipped}"), class_="soft"))
    return element("figure", _histogram(amax, seen, edges), caption, id=anchor(index))


def clipped_words(amax: float, seen: Mapping[str, Any], edges: Sequence[float]) -> str:
    """The share of values beyond amax; where amax lies inside a bin, the most it can be."""
    if seen["largest"] <= amax:
        return "nothing clipped"
    total = sum(seen["counts"]) + seen["zeros"]
    # Bins wholly above amax, and those that reach above it.
    bins = [(edges[seen["first"] + place], edges[seen["first"] + place + 1]) for place in range(len(seen["counts"]))]
    above = sum(count for count, (low, _) in zip(seen["counts"], bins, strict=True) if low >= amax)
    reaching = sum(count for count, (_, high) in zip(seen["counts"], bins, strict=True) if high > amax)
    return f"{'' if above == reaching else 'less than '}{reaching / total:.3%} beyond amax"


def _histogram(amax: float, seen: Mapping[str, Any], edges: Sequence[float]) -> str:
    """Bars of counts over log magnitude; those beyond the clip in its colour."""
    # Both axes: magnitudes from LEAST of the largest up.
    top = max(amax, seen["largest"], 1e-12) * 1.06
    low = top * LEAST
    scale = WIDTH / math.log(top / low)
    highest = float(max(seen["counts"], default=1)) or 1.0
    inside: list[str] = []
    outside: list[str] = []
    for place, count in enumerate(seen["counts"]):
        left, right = edges[seen["first"] + place], edges[seen["first"] + place + 1]
        if not count or right <= low or left >= top:
            continue
        x = max(math.log(max(left, low) / low) * scale, 0)
        width = math.log(min(right, top) / max(left, low)) * scale
        height = (count / highest) ** SHRINK * (HEIGHT - 4)
        path = f"M{x:.1f} {HEIGHT}v-{height:.1f}h{max(width - 0.5, 0.6):.1f}v{height:.1f}z"
        (outside if left >= amax else inside).append(path)
    # The clip over the bars.
    clip = math.log(max(amax, low) / low) * scale
    parts = [
        f'<path class="b" d="{"".join(inside)}"/>',
        f'<path class="beyond" d="{"".join(outside)}"/>' if outside else "",
        f'<path class="clip" d="M{clip:.1f} 0V{HEIGHT}"/><path class="axis" d="M0 {HEIGHT}H{WIDTH}"/>',
    ]
    size = f"0 0 {WIDTH} {HEIGHT + 1}"
    return f'<svg class="hist" viewBox="{size}" role="img" aria-label="magnitudes">{"".join(parts)}</svg>'


def _amax_table(calibration: Mapping[str, Any]) -> str:
    rows = [
        (text(name), number(entry["amax"], 4), number(entry["amax"] / 127))
        for name, entry in calibration["activations"].items()
    ]
    return details(f"amax of {len(rows)} points", table(("point", "amax", "scale"), rows, (1, 2))) if rows else ""


def _weights(calibration: Mapping[str, Any]) -> str:
    """Scales of weights: their spread over the channels, where one scale for all would lose most."""
    rows = []
    for name, entry in calibration["weights"].items():
        low, high = entry["amax_min"], entry["amax_max"]
        spread = number(high / low, 3) if low > 0 else "–"
        zero = str(entry["zero_channels"]) if entry["zero_channels"] else ""
        rows.append((text(name), str(entry["channels"]), number(low / 127), number(high / 127), spread, zero))
    head = ("weight", "channels", "least scale", "largest scale", "ratio", "all-zero channels")
    shown = table(head, rows, (1, 2, 3, 4, 5))
    return details(f"scales of {len(rows)} weights, one for each output channel", shown) if rows else ""
