"""Report of the race as Markdown: one table of everything at the first shape, one of the times at all shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NNCF = ("nncf", "nncf-static")  # what times are related to, beside ONNX Runtime FP32
BASE = "onnxruntime-fp32"
MISSING = "–"


def render_peers(report: Mapping[str, Any]) -> str:
    """Both tables, fastest first, and what they were measured on."""
    first = report["shapes"][0]
    entries = first["contestants"]
    order = sorted(entries, key=lambda name: entries[name]["latency_ms"]["p50"])
    head = "| contestant | time ÷ NNCF | ÷ NNCF static | × ORT FP32 | ms "
    head += "| accuracy | agreement | logit cosine | logit MSE | MB | memory MB | build s |"
    lines = [head, "|---|" + "--:|" * 11]
    lines += [f"| {' | '.join(_cells(name, entries[name], report['rows'][name]))} |" for name in order]
    if len(report["shapes"]) > 1:
        shapes = [f"{race['batch']} × {race['sequence']}" for race in report["shapes"]]
        lines += ["", f"| time ÷ NNCF | {' | '.join(shapes)} |", "|---|" + "--:|" * len(shapes)]
        for name in order:
            cells = (_ratio(race["contestants"][name], NNCF[0]) for race in report["shapes"])
            lines.append(f"| {_shown(name)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_notes(report, first)])


def _cells(name: str, entry: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    accuracy = row["accuracy"]
    speedup = entry["speedup"].get(BASE)
    return [
        _shown(name),
        *(_ratio(entry, base) for base in NNCF),
        MISSING if speedup is None else f"{speedup:.2f}",
        _milliseconds(entry["latency_ms"]["p50"]),
        f"{accuracy['metric']['int8']:.4f}" if accuracy["metric"] else MISSING,
        MISSING if accuracy["agreement"] is None else f"{accuracy['agreement']:.4f}",
        f"{accuracy['cosine_mean']:.5f}",
        f"{accuracy['logit_mse']:.5f}",
        f"{row['bytes'] / 1e6:.1f}",
        f"{row['peak_rss_bytes'] / 1e6:.0f}",
        f"{row['build_s']:.0f}",
    ]


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(entry: Mapping[str, Any], base: str) -> str:
    speedup = entry["speedup"].get(base)
    return MISSING if speedup is None else f"{1 / speedup:.2f}"


def _shown(name: str) -> str:
    return f"**{name}**" if name.startswith("qdq-") else name


def _notes(report: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    versions, machine = first["versions"], first["machine"]
    packages = ("openvino", "onnxruntime", "torch", "nncf")
    named = ", ".join(f"{name} {versions[name]}" for name in packages if name in versions)
    samples = next(iter(report["rows"].values()))["accuracy"]["samples"]
    return [
        *(f"Not measured: {reason}." for _, reason in sorted(report["skipped"].items())),
        f"{report['model']}, batch {first['batch']} × sequence {first['sequence']}, {first['threads']} threads, "
        f"{first['rounds']} interleaved rounds, OpenVINO's hint {report['precision_hint']}; {machine['cpu']}, "
        f"{machine['cores']} cores; {named}. Ratios are medians over the rounds; accuracy, agreement, cosine and MSE "
        f"are against torch FP32 over {samples} texts; memory is the peak of a process that loads and runs the engine, "
        "less what it held before." + _random(report) + _compiling(report),
    ]


def _random(report: Mapping[str, Any]) -> str:
    meaningless = " Its weights are random: agreement and cosine say how close an engine is, accuracy says nothing."
    return meaningless if report["model"].endswith("-random") else ""


def _compiling(report: Mapping[str, Any]) -> str:
    """How long our compile takes beside NNCF's quantization and the export it starts from, when both were built."""
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
