"""Report of the race as Markdown: one table of everything on full rows of the first shape, one of all workloads' times.

Times are over NNCF's of the same workload; on texts as they are, over NNCF's on cropped batches, its better form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engines.bench import CROPPED
from qdq.studies.markdown import fixed, named, table

NNCF = ("nncf", "nncf-static")  # what times are related to, beside ONNX Runtime FP32
BASE = "onnxruntime-fp32"
RANDOM = "bert-base-random"  # whose accuracy means nothing


def render_peers(report: Mapping[str, Any]) -> str:
    """Both tables, fastest first, and what they were measured on."""
    races, texts = report["shapes"], report.get("texts")
    entries = races[0]["contestants"]
    order = sorted(entries, key=lambda name: entries[name]["latency_ms"]["p50"])
    headers = ["contestant", "time ÷ NNCF", "÷ NNCF static", "× ORT FP32", "ms"]
    headers += [_metric(report), "agreement", "logit cosine", "logit MSE", "MB", "memory MB", "build s"]
    first = races[0]
    parts = [
        f"**{report['model']}, {_shape(first)}, {rows_of(first)}, on a CPU with {instructions(first['machine'])}**"
    ]
    parts.append(table(headers, (_cells(name, entries[name], report["rows"][name]) for name in order), "--:"))
    if len(races) > 1 or texts:
        columns = [_shape(race) for race in races] + (["texts, padded", "texts, cropped"] if texts else [])
        rows = (
            [_shown(n), *(_ratio(race["contestants"][n], NNCF[0]) for race in races), *_forms(texts, n)] for n in order
        )
        parts.append(table(["time ÷ NNCF", *columns], rows, "--:"))
    return "\n\n".join([*parts, _notes(report, first)])


def headline(example: Mapping[str, Any], peers: Mapping[str, Mapping[str, Any]]) -> str:
    """README.md's table: one row per real model and kind of CPU, and one for the bundled model.

    `example` is the outcome of that model's compile; `peers` are races by the names of their files.
    """
    rows = []
    for report in (peers[name] for name in sorted(peers, reverse=True) if not name.startswith(RANDOM)):
        race, texts = report["shapes"][0], report["texts"]["contestants"]
        # What `--target auto` deploys there
        ours = max((name for name in report["rows"] if name.startswith("qdq-")), key=_speed_in(race))
        metric, speedup = report["rows"][ours]["accuracy"]["metric"], race["contestants"][ours]["speedup"]
        best = max(texts[form]["speedup"][f"{NNCF[0]}{CROPPED}"] for form in (ours, f"{ours}{CROPPED}"))
        scores = f"{metric['name']} {metric['fp32']:.4f} → {metric['int8']:.4f}"
        times = [f"{ratio:.2f}" for ratio in (speedup[BASE], speedup[NNCF[0]], best)]
        rows.append([f"{report['model']}, {_machine(race)}", *times, scores])
    bench, cosine = example["benchmark"], example["accuracy"]["cosine_mean"]
    ratio = bench["contestants"]["int8"]["speedup"][BASE]
    rows.append([f"{Path(example['out']).name}, {_machine(bench)}", f"{ratio:.2f}", "–", "–", f"cosine {cosine:.4f}"])
    headers = ["model, machine", "x ONNX Runtime FP32", "x NNCF INT8, full rows", "x NNCF INT8, texts", "FP32 → INT8"]
    return (
        f"{table(headers, rows)}\n\nOur faster engine (OpenVINO; ONNX Runtime without VNNI), batch {bench['batch']} x "
        f"sequence {bench['sequence']}, {bench['threads']} threads, interleaved in one run; above 1 is faster. "
        "Full rows: every token real. Texts: of their own lengths, padded or cropped, whichever suits a tool."
    )


def _speed_in(race: Mapping[str, Any]) -> Callable[[str], float]:
    return lambda name: float(race["contestants"][name]["speedup"][BASE])


def _machine(race: Mapping[str, Any]) -> str:
    sets = instructions(race["machine"]).partition(",")[0]
    return f"{race['machine']['cpu'].replace('(R)', '').replace(' Processor', '')} ({sets})"


def instructions(machine: Mapping[str, Any]) -> str:
    """Instruction sets that multiply INT8, from the ``machine`` object of a benchmark."""
    exact = ", ".join(name for name in machine["isa"] if "vnni" in name or name == "amx_int8")
    return exact or f"{', '.join(machine['isa']) or 'no known instructions'}, without VNNI"


def _shape(race: Mapping[str, Any]) -> str:
    return f"{race['batch']} × {race['sequence']}"


def rows_of(race: Mapping[str, Any]) -> str:
    """Content of a race's batches; before 2026-11-28 these were texts of their own lengths, padded to every shape."""
    padding = race["workload"]["padding_share"]
    return f"{padding:.0%} padding" if padding else "full rows"


def _forms(texts: Mapping[str, Any] | None, name: str) -> list[str]:
    """Times on texts as they are over NNCF's on cropped batches: fed padded ones, and cropped ones."""
    if not texts:
        return []
    entries, base = texts["contestants"], f"{NNCF[0]}{CROPPED}"
    return [_ratio(entries[form], base) if form in entries else fixed(None, 2) for form in (name, name + CROPPED)]


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
    where = f"{machine['cpu']}, {machine['cores']} cores ({instructions(machine)}); {tools}"
    lines.append(
        f"{report['model']}, batch {first['batch']} × sequence {first['sequence']}, {rows_of(first)}, "
        f"{first['threads']} threads, {first['rounds']} interleaved rounds, "
        f"OpenVINO's hint {report['precision_hint']}; {where}. Ratios are medians over the rounds; {_metric(report)}, "
        f"agreement, cosine and MSE are against torch FP32 over {samples} texts; memory is the peak of a process that "
        "loads and runs the engine, less what it held before."
    )
    if report["model"].endswith("-random"):
        lines[-1] += " Its weights are random: agreement and cosine say how close an engine is, accuracy says nothing."
    return "\n".join(lines) + _texts(report) + _compiling(report)


def _metric(report: Mapping[str, Any]) -> str:
    """Name of the task's metric."""
    metrics = (row["accuracy"]["metric"] for row in report["rows"].values())
    return next((str(metric["name"]) for metric in metrics if metric), "accuracy")


def _texts(report: Mapping[str, Any]) -> str:
    """A sentence about the texts of the last two columns."""
    if not (texts := report.get("texts")):
        return ""
    work = texts["workload"]
    return (
        f" Texts as they are: batches of {texts['batch']} with {work['mean_tokens']:.0f} tokens a text on average and "
        f"{work['mean_longest']:.0f} in the longest of a batch, padded to {texts['sequence']} or cropped to that "
        f"longest; both over NNCF's time on cropped ones, medians of {texts['rounds']} rounds."
    )


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
