"""The model as its layers: a cell for every point and every multiplication, with state and reason on hover."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from qdq.placing.units import kind_of, layer_of, part_of
from qdq.report.facts import Coverage, Facts
from qdq.report.html import details, element, number, paragraph, section, table, text

# Parts of a block in the order of the data, by what their names contain; first match counts.
PARTS = (
    ("Attention: query, key, value", ("query", "key", "value", "q_lin", "k_lin", "v_lin", ".q", ".k", ".v", "qkv")),
    ("Attention: products", ("matmul",)),
    ("Attention: output and residual add", ("attention", "out_lin", "sa_layer")),
    ("Feed-forward", ("intermediate", "ffn.lin1", "lin1", "ffn")),
    ("Feed-forward: output and residual add", ("",)),
)
OUTSIDE = "Outside the layers"


def anchor(index: int) -> str:
    """Id of a point's picture."""
    return f"p{index}"


def layers(facts: Facts) -> str:
    """Section "The model, layer by layer"."""
    points = facts.points
    if not points:
        return section("layers", "The model, layer by layer", paragraph("No placement was written yet."))
    depth = 1 + max((layer for point in points if (layer := layer_of(point["name"])) is not None), default=-1)
    found = facts.coverage
    drawn = (facts.get("histograms") or {}).get("points", {})
    rows = _rows(points)
    cells = [_head(depth)]
    # The points, part by part.
    for title, names in _by_part(rows).items():
        cells.append(element("div", text(title), class_="part"))
        for name in names:
            cells.append(element("div", text(label(name)), class_="row", title=name))
            by_layer = rows[name]
            cells += [_cell(facts, by_layer.get(layer), drawn) for layer in range(depth)]
    grid = element(
        "div",
        *cells,
        class_="map",
        style=f"grid-template-columns:max-content repeat({depth},minmax(18px,1fr));max-width:{140 + 37 * depth}px",
        role="group",
    )
    placed = sum(1 for point in points if point["placed"])
    key = element(
        "p",
        element("span", class_="key", style="background:var(--int8)"),
        "INT8 point",
        element("span", class_="key", style="background:var(--float-soft);border:1px solid var(--float)"),
        "left in floating point, with the reason on hover",
        class_="soft",
    )
    said = paragraph(f"{placed} of {len(points)} candidates have a quantizer. A column is an encoder layer.")
    return section(
        "layers",
        "The model, layer by layer",
        said,
        key,
        element("div", grid, class_="scroll"),
        _outside(points),
        _not_int8(found),
        _float_points(points),
    )


def _rows(points: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Row -> layer -> point, for the points inside layers; a point knows its place in the list."""
    rows: dict[str, dict[int, Mapping[str, Any]]] = {}
    for index, point in enumerate(points):
        layer = layer_of(point["name"])
        if layer is not None:
            name = f"{part_of(point['name'])} · {kind_of(point['name'])}"
            rows.setdefault(name, {})[layer] = {**point, "index": index}
    return rows


def _by_part(rows: Iterable[str]) -> dict[str, list[str]]:
    """Rows under the title of their part, in the order of the data."""
    found: dict[str, list[str]] = {title: [] for title, _ in PARTS}
    for name in rows:
        kind = name.rpartition(" · ")[2]
        if kind.startswith("matmul"):
            found[PARTS[1][0]].append(name)
            continue
        found[
            next(title for title, words in PARTS if any(word in name for word in words) and title != PARTS[1][0])
        ].append(name)
    return {title: names for title, names in found.items() if names}


def label(row: str) -> str:
    """Short name of a row under the title of its part: the module where a part has several, and what is quantized."""
    owner, _, kind = row.rpartition(" · ")
    if not kind.startswith("linear"):
        return kind.replace("matmul", "product operand").replace("residual", "add,")
    return f"{owner.rpartition('.')[2]} {kind.removeprefix('linear ')}"


def _head(depth: int) -> str:
    return element("div", "layer", class_="head") + "".join(
        element("div", str(layer), class_="head") for layer in range(depth)
    )


def _cell(facts: Facts, point: Mapping[str, Any] | None, drawn: Mapping[str, Any]) -> str:
    if point is None:
        return element("span", class_="c no", title="no such point here")
    name, state = point["name"], "on" if point["placed"] else "off"
    link = f"#{anchor(point['index'])}" if name in drawn and point["placed"] else None
    said = hover(facts, point)
    return element("a", class_=f"c {state}", title=said, href=link, aria_label=said)


def hover(facts: Facts, point: Mapping[str, Any]) -> str:
    """State, reason and range of a point, one line each."""
    name = point["name"]
    lines = [name, f"{'INT8' if point['placed'] else 'floating point'}: {point['reason']}"]
    table = facts.get("calibration") or {}
    if (activation := table.get("activations", {}).get(name)) is not None:
        lines.append(f"amax {number(activation['amax'], 4)}, scale {number(activation['amax'] / 127)}")
    if (weight := table.get("weights", {}).get(name)) is not None:
        low, high = number(weight["amax_min"], 4), number(weight["amax_max"], 4)
        lines.append(f"{weight['channels']} channels, amax {low} to {high}")
    if (ranked := _sensitivity(facts).get(name)) is not None:
        lines.append(f"quantized alone it moves the answers by {number(ranked['damage'])}")
    return "\n".join(lines)


def _sensitivity(facts: Facts) -> dict[str, Mapping[str, Any]]:
    return {entry["name"]: entry for entry in (facts.get("sensitivity") or {}).get("points", ())}


def _outside(points: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (text(point["name"]), "INT8" if point["placed"] else "float", text(point["reason"]))
        for point in points
        if layer_of(point["name"]) is None
    ]
    return details(f"{OUTSIDE}: {len(rows)} points", table(("point", "is", "reason"), rows)) if rows else ""


def _not_int8(found: Coverage | None) -> str:
    """Multiplications that the engine runs in floating point, grouped by reason."""
    if found is None:
        return paragraph("No engine was built here, so nothing has said which of these it runs in INT8.", class_="soft")
    if not found.not_int8:
        return paragraph("The engine runs every multiplication of the encoder in INT8.")
    named = [(entry.name, entry.reason) for entry in found.not_int8]
    return _by_reason("Multiplications that the engine runs in floating point, and why", named)


def _float_points(points: Iterable[Mapping[str, Any]]) -> str:
    """Points inside layers that have no quantizer, grouped by reason: what hovering tells, to be read and searched."""
    named = [
        (point["name"], point["reason"])
        for point in points
        if not point["placed"] and layer_of(point["name"]) is not None
    ]
    return _by_reason("Points of the layers that are left in floating point, and why", named) if named else ""


def _by_reason(title: str, named: Iterable[tuple[str, str]]) -> str:
    """Names and their reasons as a table with a row for each reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in named:
        reasons.setdefault(reason, []).append(name)
    rows = [
        (str(len(names)), text(reason), element("span", text(_named(names)), class_="mono"))
        for reason, names in reasons.items()
    ]
    return element("h3", title) + table(("", "reason", "where"), rows, (0,))


def _named(names: list[str]) -> str:
    """Names with a star for the number of the layer where several differ in nothing else."""
    starred = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))
    return ", ".join(names if len(names) == 1 else starred)
