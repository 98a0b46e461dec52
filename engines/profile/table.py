"""The profile on screen: one row per group, one column per engine, at most 80 columns for five engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.profile.layers import GROUPS

GROUP_WIDTH, CELL_WIDTH = 16, 12


def render_profile(report: Mapping[str, Any]) -> str:
    """A profile.json object as text."""
    profiles = report["profiles"]
    used = [group for group in GROUPS if any(entry["groups"][group] >= 0.005 for entry in profiles)]
    lines = [_row("ms", [entry["label"] for entry in profiles])]
    lines += [_row(group, [f"{entry['groups'][group]:.2f}" for entry in profiles]) for group in used]
    lines.append(_row("all layers", [f"{entry['layers_ms']:.2f}" for entry in profiles]))
    lines.append(_row("whole call", [f"{entry['call_ms']:.2f}" for entry in profiles]))
    for kind, title in (("int8", "INT8 gemm"), ("float", "float gemm")):
        counted = [entry["gemm"][kind] for entry in profiles]
        cells = ["-" if gemm is None else f"{gemm['of_peak']:.0%}" for gemm in counted]
        if any(cell != "-" for cell in cells):
            lines.append(_row(f"{title}, peak", cells))
    peak = report["peak"]
    lines.append(
        f"batch {report['batch']} x sequence {report['sequence']}, {report['threads'] or 'all'} threads; measured peak "
        f"{peak['int8']:.0f} Gop/s\nINT8, {peak['fp32']:.0f} FP32; {report['machine']['cpu']}"
    )
    return "\n".join(lines) + "\n"


def _row(title: str, cells: list[str]) -> str:
    return f"{title:<{GROUP_WIDTH}}" + "".join(f"{cell[: CELL_WIDTH - 1]:>{CELL_WIDTH}}" for cell in cells)
