"""The benchmark on screen: plain text, one line per contestant, at most 80 columns.

Full rows come first; texts of their own lengths, where the report has them, in a block of their own, in which one line
shows a contestant's two forms (batches padded, and cropped to their longest text) and is compared by the better one.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from engines.bench.interleave import CROPPED, MIN_SAMPLES
from engines.bench.report import BASE_SUFFIX, best_form, best_speedup, contestants_of, forms_of
from qdq.base.screen import WIDTH

NAME_WIDTH = 18
ORT_BASE = "onnxruntime-fp32"  # the baseline everybody has
MISSING = "-"
RATIOS = "x ORT: times faster than ONNX Runtime FP32, x own: than the same runtime's FP32"


def render_table(report: Mapping[str, Any]) -> str:
    """A benchmark.json object as text: latencies in ms, sequences per second, speedups over the two FP32 baselines.

    ``x ORT`` compares with ONNX Runtime FP32, ``x own`` with the FP32 engine of the same runtime; both are medians of
    per-round ratios (see engines.bench.report), so they differ a little from a ratio of the p50 columns.
    """
    texts = report.get("texts")
    lines = [_row("full rows" if texts else "contestant", ("samples", "p50 ms", "p90 ms", "p99 ms", "seq/s", *_OVER))]
    lines += [_line(report["contestants"], name) for name in report["contestants"]]
    if texts:
        lines += ["", _row("own lengths", ("samples", "padded", "cropped", "seq/s", *_OVER))]
        lines += [_line_of_forms(texts["contestants"], name) for name in contestants_of(texts["contestants"])]
    return "\n".join([*lines, *(textwrap.fill(note, WIDTH) for note in _notes(report))]) + "\n"


_OVER = ("x ORT", "x own")


def _line(entries: Mapping[str, Any], name: str) -> str:
    entry = entries[name]
    cells = [str(entry["samples"]), *(_number(entry["latency_ms"][key]) for key in ("p50", "p90", "p99"))]
    return _row(name, [*cells, _number(entry["sequences_per_s"]), *_speedups(entries, name)])


def _line_of_forms(entries: Mapping[str, Any], name: str) -> str:
    forms = [entries.get(form) for form in (name, name + CROPPED)]
    cells = ["/".join(str(entry["samples"]) if entry else MISSING for entry in forms)]
    cells += [_number(entry["latency_ms"]["p50"] if entry else None) for entry in forms]
    rate = entries[best_form(entries, name)]["sequences_per_s"]
    return _row(name, [*cells, _number(rate), *_speedups(entries, name)])


def _speedups(entries: Mapping[str, Any], name: str) -> list[str]:
    bases = (ORT_BASE, f"{entries[forms_of(entries, name)[0]]['engine']}{BASE_SUFFIX}")
    found = (best_speedup(entries, name, base) for base in bases)
    return [MISSING if speedup is None else f"{speedup:.2f}" for speedup in found]


def _row(name: str, cells: Sequence[str]) -> str:
    short = name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 3] + "..."
    return f"{short:<{NAME_WIDTH}}" + "".join(f"{cell:>8}" for cell in cells)


def _number(value: float | None) -> str:
    """Three or four significant digits without an exponent."""
    if value is None:
        return MISSING
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 1000 else 0}f}"


def _notes(report: Mapping[str, Any]) -> list[str]:
    # Batches and machine, then what limits the numbers.
    host, texts = report["machine"], report.get("texts")
    machine = f"{host['cpu']}, {host['cores']} cores, {host['gpu'] or 'no NVIDIA GPU'}"
    notes = [f"batch {report['batch']} x sequence {report['sequence']}, {_tokens(report)}; {machine}; {RATIOS}"]
    if texts:
        notes.append(
            f"own lengths: {_tokens(texts)}; padded to {report['sequence']}, or cropped to the longest text of the "
            f"batch, {texts['workload']['mean_longest']:.0f} tokens on average; p50 ms, ratios of everyone's best"
        )
    if report.get("streams", 1) > 1:
        notes.append(
            f"{report['streams']} such batches side by side, {report['threads']} thread(s) each; ms until all are done"
        )
    if any(entry["latency_ms"]["p99"] is None for entry in report["contestants"].values()):
        notes.append("p99 needs 100 samples: run the benchmark without a time budget for it")
    if texts and any(len(forms_of(texts["contestants"], name)) < 2 for name in contestants_of(texts["contestants"])):
        notes.append("-: the time budget had no room for it, and no ratio needs it")
    parts = [part for part in (report, texts) if part]
    if any(part["budget_exceeded"] for part in parts):
        taken, budget = (sum(part[key] for part in parts) for key in ("elapsed_s", "budget_s"))
        notes.append(
            f"took {taken:.1f} s, over the {budget:.1f} s it had of the time budget; every contestant is timed at "
            f"least {MIN_SAMPLES} times"
        )
    return notes


def _tokens(report: Mapping[str, Any]) -> str:
    work = report["workload"]
    if not work["padding_share"]:
        return "every token real"
    return f"on average {work['mean_tokens']:.0f} real tokens a text ({work['padding_share']:.0%} padding)"
