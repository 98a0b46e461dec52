"""An estimate on screen: plain text, at most 80 columns, the word estimate in every headline."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from engines.estimate.report import group_name
from qdq.base.screen import WIDTH

NAME_WIDTH = 50
OP_TYPES = ("Add", "Gemm", "LayerNormalization", "MatMul", "Softmax")  # a node label may end in one
VARIANT_NAMES = {"lowered": "as lowered", "float16": "all FP16", "float32": "all FP32"}


def render_estimate(report: Mapping[str, Any]) -> str:
    """The estimate as text: totals, layers alike put together, what each quantizer saves, and how far to trust it."""
    parts = (_totals(report), _layers(report), _quantizers(report), _validation(report))
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _totals(report: Mapping[str, Any]) -> list[str]:
    label = "Estimate" if report["validation"]["validated"] else "Unvalidated estimate"
    lines = [f"{label}, {report['device']['title']}, batch {report['batch']} x sequence {report['sequence']}"]
    lines += textwrap.wrap("computed from a model of the device, nothing was run on it", WIDTH)
    kernels = report["kernels"]
    said = f"{kernels['count']} kernels, {kernels['megabytes']:.1f} MB: {kernels['from']} ({kernels['about']})"
    lines += textwrap.wrap(said, WIDTH)
    lines.append(_line("network", ["est. ms", "seq/s", "ratio"]))
    lowered = report["estimate_ms"]["lowered"]
    for name, ms in report["estimate_ms"].items():
        lines.append(
            _line(VARIANT_NAMES[name], [_number(ms), f"{1e3 * report['batch'] / ms:.0f}", f"{ms / lowered:.2f}"])
        )
    return lines


def _layers(report: Mapping[str, Any]) -> list[str]:
    lines = ["Estimate by layer, as lowered", _line("layer", ["count", "est. ms", "share"])]
    groups: dict[tuple[str, str, str], list[float]] = {}
    for row in report["layers"]:
        groups.setdefault((_short(row["name"]), row["kind"], row["precision"]), []).append(row["estimate_ms"])
    lowered = report["estimate_ms"]["lowered"]
    for (name, kind, precision), values in groups.items():
        cells = [str(len(values)), _number(sum(values)), f"{sum(values) / lowered:.0%}"]
        lines.append(_line(f"{name} {kind}" + ("" if precision in kind else f" [{precision}]"), cells))
    return lines


def _quantizers(report: Mapping[str, Any]) -> list[str]:
    if not report["quantizers"]:
        return []
    lines = ["Estimate of what each quantizer saves: added when one layer loses it"]
    lines.append(_line("layer, and what it becomes", ["count", "each ms", "all ms"]))
    groups: dict[str, list[float]] = {}
    for point in report["quantizers"]:
        groups.setdefault(f"{_short(point['name'])} -> {point['if_lost']}", []).append(point["estimate_cost_ms"])
    for name, values in sorted(groups.items(), key=lambda item: -sum(item[1])):
        cells = [str(len(values)), _number(sum(values) / len(values)), _number(sum(values))]
        lines.append(_line(name, cells))
    return lines


def _validation(report: Mapping[str, Any]) -> list[str]:
    found = report["validation"]
    if found["range_ms"] is None:
        said = (
            f"Estimates for this device are on average {found['mean_error_percent']} % from {found['rows']} published "
            f"latencies the model was not fitted on, at worst {found['worst_error_percent']:+} %."
        )
    else:
        low, high = found["range_ms"]
        said = (
            f"UNVALIDATED estimate: no published row of this device. As lowered it lies between {_number(low)} ms "
            f"(no power limit) and {_number(high)} ms (limited like a T4)."
        )
    sentences = (said, *(f"Note: {note}." for note in found["notes"]))
    return [line for sentence in sentences for line in textwrap.wrap(sentence, WIDTH)]


def _short(name: str) -> str:
    """*.attention.self for bert.encoder.layer.3.attention.self.Softmax: one name for all encoder layers."""
    stem, _, last = group_name(name).rpartition(".")
    grouped = stem if stem and last in OP_TYPES else group_name(name)
    return grouped[max(grouped.find("*"), 0) :]


def _line(name: str, cells: list[str]) -> str:
    if len(name) > NAME_WIDTH:
        name = f"...{name[-(NAME_WIDTH - 3) :]}"  # the end says which layer of a block it is
    return f"{name:<{NAME_WIDTH}}" + "".join(f"{cell:>10}" for cell in cells)


def _number(value: float) -> str:
    """Three significant digits and more, without an exponent."""
    return f"{value:.{3 if abs(value) < 1 else 2 if abs(value) < 10 else 1}f}"
