"""The benchmark on screen: plain text, one line per contestant, at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from engines.bench.interleave import MIN_SAMPLES
from engines.bench.report import BASE_SUFFIX
from qdq.base.screen import WIDTH

NAME_WIDTH = 18
ORT_BASE = "onnxruntime-fp32"  # the baseline everybody has
MISSING = "-"


def render_table(report: Mapping[str, Any]) -> str:
    """A benchmark.json object as text: latencies in ms, sequences per second, speedups over the two FP32 baselines.

    ``x ORT`` compares with ONNX Runtime FP32, ``x own`` with the FP32 engine of the same runtime; both are medians of
    per-round ratios (see engines.bench.report), so they differ a little from a ratio of the p50 columns.
    """
    lines = [_row("contestant", ["samples", "p50 ms", "p90 ms", "p99 ms", "seq/s", "x ORT", "x own"])]
    lines += [_line(name, entry) for name, entry in report["contestants"].items()]
    return "\n".join([*lines, *(textwrap.fill(note, WIDTH) for note in _notes(report))]) + "\n"


def _line(name: str, entry: Mapping[str, Any]) -> str:
    latency, speedup = entry["latency_ms"], entry["speedup"]
    own_base = f"{entry['engine']}{BASE_SUFFIX}"
    cells = [str(entry["samples"]), *(_number(latency[key]) for key in ("p50", "p90", "p99"))]
    cells.append(_number(entry["sequences_per_s"]))
    cells += [f"{speedup[base]:.2f}" if base in speedup else MISSING for base in (ORT_BASE, own_base)]
    return _row(name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 3] + "...", cells)


def _row(name: str, cells: list[str]) -> str:
    return f"{name:<{NAME_WIDTH}}" + "".join(f"{cell:>8}" for cell in cells)


def _number(value: float | None) -> str:
    """Three or four significant digits without an exponent."""
    if value is None:
        return MISSING
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 1000 else 0}f}"


def _notes(report: Mapping[str, Any]) -> list[str]:
    work, host = report["workload"], report["machine"]
    notes = [
        f"batch {report['batch']} x sequence {report['sequence']}, on average {work['mean_tokens']:.0f} real tokens a "
        f"text ({work['padding_share']:.0%} padding); {host['cpu']}, {host['cores']} cores, "
        f"{host['gpu'] or 'no NVIDIA GPU'}; x ORT: times faster than ONNX Runtime FP32, x own: than the same runtime's "
        "FP32"
    ]
    if report.get("streams", 1) > 1:
        notes.append(
            f"{report['streams']} such batches side by side, {report['threads']} thread(s) each; ms until all are done"
        )
    if any(entry["latency_ms"]["p99"] is None for entry in report["contestants"].values()):
        notes.append("p99 needs 100 samples: run the benchmark without a time budget for it")
    if report["budget_exceeded"]:
        notes.append(
            f"took {report['elapsed_s']:.1f} s, over its budget of {report['budget_s']:g} s; every contestant is timed "
            f"at least {MIN_SAMPLES} times"
        )
    return notes
