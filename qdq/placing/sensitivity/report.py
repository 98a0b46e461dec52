"""A study as a ranked table for the screen and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qdq.base.picture import new_figure, save_figure
from qdq.placing.sensitivity.groups import kind_of, layer_of, part_of

SHOWN = 15  # rows of each table on the screen
Entry = Mapping[str, Any]


def render(report: Mapping[str, Any]) -> str:
    """The most damaging groups and points, at most 80 columns where names allow."""
    everything = report["everything"]
    lines = [
        f"everything quantized: divergence {everything['divergence']:.5f} ({report['divergence']}), "
        f"output error {everything['mse']:.4g}",
        f"over {report['source']}",
    ]
    if everything["metric"] is not None:
        lines.append(f"metric {report['floating']['metric']:.4f} in FP32, {everything['metric']:.4f} quantized")
    for title, entries in (("groups", report["groups"]), ("points", report["points"])):
        lines += ["", f"{title:<7}   damage     gain  SNR dB  {_metric_head(entries)}", *map(_line, entries[:SHOWN])]
        if len(entries) > SHOWN:
            lines.append(f"  and {len(entries) - SHOWN} more, see sensitivity.json")
    note = "damage: divergence with only this quantized; gain: what leaving only this out takes off the whole's"
    return "\n".join([*lines, "", note]) + "\n"


def _metric_head(entries: Sequence[Entry]) -> str:
    return "points -/+  " if entries and "metric_damage_points" in entries[0] else ""


def _line(entry: Entry) -> str:
    text = f"       {entry['damage']:9.5f} {entry['gain']:+8.5f} {entry['snr_db']:7.1f}  "
    if "metric_damage_points" in entry:
        text += f"{-entry['metric_damage_points']:+5.2f} {entry['metric_gain_points']:+5.2f}  "
    return text + (f"{entry['name']} ({entry['points']} points)" if entry["kind"] == "group" else entry["name"])


def plot(report: Mapping[str, Any], path: Path) -> Path:
    """PNG: one cell per part of a block and layer, coloured by damage, and the ranked damage of all points beside it.

    Raises DeployError when the file cannot be written.
    """
    from matplotlib.colors import LogNorm

    cells = {(_part(e["name"]), layer_of(e["name"]) or 0): e["damage"] for e in report["points"]}
    parts = sorted({part for part, _ in cells})
    layers = sorted({layer for _, layer in cells})
    smallest = max(min((value for value in cells.values() if value > 0), default=1e-9), 1e-9)
    grid = [[max(cells.get((part, layer), smallest), smallest) for layer in layers] for part in parts]
    figure = new_figure(12, 0.28 * len(parts) + 2)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    image = left.imshow(
        grid, aspect="auto", cmap="viridis", norm=LogNorm(smallest, max(max(map(max, grid)), 2 * smallest))
    )
    left.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    left.set_yticks(range(len(parts)), parts, fontsize=7)
    left.set_xlabel("encoder layer")
    left.set_title("damage of quantizing one point alone")
    figure.colorbar(image, ax=left, label=f"divergence ({report['divergence']})")
    damages = [max(entry["damage"], smallest) for entry in report["points"]]
    right.semilogy(range(1, len(damages) + 1), damages, ".-", markersize=4, label="one point alone")
    whole = max(report["everything"]["divergence"], smallest)
    right.axhline(whole, color="tab:red", label="all points")
    right.set_xlabel("points, most damaging first")
    right.set_title("ranked")
    right.grid(visible=True, alpha=0.3)
    right.legend()
    return save_figure(figure, path)


def _part(point: str) -> str:
    return f"{part_of(point)} · {kind_of(point)}"
