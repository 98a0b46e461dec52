"""The profile as a stacked bar picture (PNG or SVG, by the file's suffix)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.profile.layers import GROUPS
from qdq.base.artifacts import atomic_path
from qdq.errors import Unavailable

COLORS = ("#4477aa", "#ee6677", "#aa3377", "#228833", "#66ccee", "#99ddaa", "#ccbb44", "#ee8866", "#bbbbbb", "#dddddd")
SMALLEST_LABEL = 0.03  # of the longest bar: a narrower piece has no room for its number


def draw_profile(report: Mapping[str, Any], path: Path) -> Path:
    """Write one horizontal bar per engine, a piece per group. Raises Unavailable without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unavailable("matplotlib is not installed; run: pip install '.[dev]'") from error
    # One horizontal bar per engine, drawn without pyplot and its global state.
    profiles = report["profiles"]
    longest = max(entry["layers_ms"] for entry in profiles)
    figure = Figure(figsize=(10, 1.9 + 0.6 * len(profiles)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = [entry["label"] for entry in profiles]
    # Group by group, each piece where the one before it ended; groups that take next to no time are left out.
    left = [0.0] * len(profiles)
    for group, color in zip(GROUPS, COLORS, strict=True):
        widths = [entry["groups"][group] for entry in profiles]
        if max(widths) < 0.002 * longest:
            continue
        bars = axes.barh(names, widths, left=left, color=color, label=group, edgecolor="white", linewidth=0.5)
        labels = [f"{width:.1f}" if width >= SMALLEST_LABEL * longest else "" for width in widths]
        axes.bar_label(bars, labels, label_type="center", fontsize=8)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    # Totals behind the bars, the legend above them.
    for place, total in enumerate(left):
        axes.text(total + 0.005 * longest, place, f"{total:.1f}", va="center", fontsize=9, fontweight="bold")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08 * longest)
    axes.set_xlabel(f"ms of a batch of {report['batch']} x {report['sequence']} tokens, by the engines' own counters")
    axes.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as partial:
        figure.savefig(partial, format=path.suffix.lstrip(".") or "png", dpi=120, metadata={})
    return path
