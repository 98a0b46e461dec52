"""Report of the race as Markdown: one table of everything at the first shape, one of the times at all shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdq.studies.markdown import fixed, named, table

NNCF = ("nncf", "nncf-static")  # what times are related to, beside ONNX Runtime FP32
BASE = "onnxruntime-fp32"


def render_peers(report: Mapping[str, Any]) -> str:
    """Both tables, fastest first, and what they were measured on."""
    races = report["shapes"]
    entries = races[0]["contestants"]
    order = sorted(entries, key=lambda name: entries[name]["latency_ms"]["p50"])
    headers = ["contestant", "time ÷ NNCF", "÷ NNCF static", "× ORT FP32", "ms"]
    headers += ["accuracy", "agreement", "logit cosine", "logit MSE", "MB", "memory MB", "build s"]
    parts = [table(headers, (_cells(name, entries[name], report["rows"][name]) for name in order), "--:")]
    if len(races) > 1:
        shapes = [f"{race['batch']} × {race['sequence']}" for race in races]
        rows = ([_shown(n), *(_ratio(race["contestants"][n], NNCF[0]) for race in races)] for n in order)
        parts.append(table(["time ÷ NNCF", *shapes], rows, "--:"))
    return "\n\n".join([*parts, _notes(report, races[0])])


def _cells(name: str, entry: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    accuracy, ms = row["accuracy"], entry["latency_ms"]["p50"]
    return [
        _shown(name),
        *(_ratio(entry, base) for base in NNCF),
        fixed(entry["speedup"].get(BASE), 2),
        f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}",
        fixed(accuracy["metric"] and accuracy["metric"]["int8"], 4),
        fixed(accuracy["agreement"], 4),
        fixed(accuracy["cosine_mean"], 5),
        fixed(accuracy["logit_mse"], 5),
        fixed(row["bytes"] / 1e6, 1),
        fixed(row["peak_rss_bytes"] / 1e6, 0),
        fixed(row["build_s"], 0),
    ]


def _ratio(entry: Mapping[str, Any], base: str) -> str:
    speedup = entry["speedup"].get(base)
    return fixed(speedup and 1 / speedup, 2)


def _shown(name: str) -> str:
    return f"**{name}**" if name.startswith("qdq-") else name


def _notes(report: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    versions, machine = first["versions"], first["machine"]
    tools = named(versions, ("openvino", "onnxruntime", "torch", "nncf"))
    samples = next(iter(report["rows"].values()))["accuracy"]["samples"]
    lines = [f"Not measured: {reason}." for _, reason in sorted(report["skipped"].items())]
    lines.append(
        f"{report['model']}, batch {first['batch']} × sequence {first['sequence']}, {first['threads']} threads, "
        f"{first['rounds']} interleaved rounds, OpenVINO's hint {report['precision_hint']}; {machine['cpu']}, "
        f"{machine['cores']} cores; {tools}. Ratios are medians over the rounds; accuracy, agreement, cosine and MSE "
        f"are against torch FP32 over {samples} texts; memory is the peak of a process that loads and runs the engine, "
        "less what it held before."
    )
    if report["model"].endswith("-random"):
        lines[-1] += " Its weights are random: agreement and cosine say how close an engine is, accuracy says nothing."
    return "\n".join(lines) + _compiling(report)


def _compiling(report: Mapping[str, Any]) -> str:
    """The time of our compile beside NNCF's quantization and the export it starts from, when both were built."""
    ours, nncf = report["rows"].get("qdq-openvino"), report["rows"].get(NNCF[0])
    if not ours or not nncf or "compile_s" not in ours:
        return ""
    alone = report.get("built_alone", False)
    how = "In processes of their own, imports included: " if alone else "Built one after another in one process: "
    theirs = nncf["build_s"] + report["float_export_s"]
    return (
        f" {how}checkpoint to lowered graph took us {ours['compile_s']:.0f} s, "
        f"NNCF and the FP32 export it starts from {theirs:.0f} s: {ours['compile_s'] / theirs:.2f} of theirs."
    )
