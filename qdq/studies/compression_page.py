"""The tables of docs/compression.md and their summary, from every JSON in docs/results/compression/.

Three kinds of file are understood: what `compress()` writes (compression.json), what the walkthrough writes
(walkthrough.json), and a benchmark of several engines (benchmark.json).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdq.errors import DataError
from qdq.studies.compression_recipes import CASES, PARTS
from qdq.studies.markdown import fixed, named, table


def sections(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One section per file, then what has not been measured. Raises DataError for a file of another kind."""
    parts = [f"### {name}\n\n{_section(name, result)}" for name, result in sorted(results.items())]
    missing = [f"{model}:{part}" for model in CASES for part in PARTS if f"{model}-{part}" not in results]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n\n".join(parts)


def _section(name: str, result: Mapping[str, Any]) -> str:
    kinds = {"rows": _walkthrough, "candidates": _compressed, "contestants": _benchmark}
    for key, section in kinds.items():
        if key in result:
            return section(result)
    raise DataError(f"docs/results/compression/{name}.json: is none of {', '.join(kinds)}; remove it")


def _compressed(result: Mapping[str, Any]) -> str:
    """The models that one compress() made."""
    rows = [["as given", f"{result['baseline']:.4f}", "", "", ""]]
    parts = []
    for row in result["candidates"]:
        name, notes = row["name"], row.get("notes", {})
        mark = " (best)" if name == result["best"] else ""
        sizes = (f"{row['parameters'] / 1e6:.2f}", f"{row['weights_mb']:.1f}")
        rows.append([f"{name}{mark}", f"{row['metric']:.4f}", f"{-100 * row['drop']:+.2f}", *sizes])
        # A trained one: what it started from, and which of its evaluated steps was kept.
        if notes.get("best_step") is not None:
            before = f"; calibrated, {notes['calibrated_metric']:.4f} before" if "calibrated_metric" in notes else ""
            parts.append(f"{name} is the model after step {notes['best_step']}{before}.")
    if "command" in result:
        took = f" ({result['cpu_minutes']} minutes of one core)" if "cpu_minutes" in result else ""
        parts.append(f"`{result['command']}`{took}")
    return "\n\n".join([table(["candidate", "metric", "points", "M parameters", "weights MB"], rows), *parts])


def _benchmark(result: Mapping[str, Any]) -> str:
    """Engines in one interleaved run, against the first one; with the engines' own metric where it was measured."""
    contestants, scores = result["contestants"], result.get("scores", {})
    base = next(iter(contestants))
    rows = []
    for name, entry in contestants.items():
        found = scores.get(name)
        points = "–" if found is None else f"{100 * (found - scores['fp32']):+.2f}"
        times = (f"{entry['latency_ms']['p50']:.1f}", f"{entry['speedup'][base]:.2f}")
        rows.append([name, *times, fixed(found, 4), points])
    if "fp32" in scores:
        rows.append(["FP32", "–", "–", f"{scores['fp32']:.4f}", ""])
    return (
        f"{table(['engine', 'p50 ms', 'faster', 'metric', 'points'], rows)}\n\n"
        f"{_where(result)}, {result['threads']} threads; faster is the median of per-round ratios to {base}."
    )


def _walkthrough(result: Mapping[str, Any]) -> str:
    """The dynamic-quantization walkthrough: the fine-tuned model, then the BERT-base shape."""
    headers = ["model", "contestant", "MB", "smaller", "accuracy", "F1", "mean", "evaluation s", "faster"]
    measured = [(result["model"], row) for row in result["rows"]]
    measured += [("BERT-base shape", row) for row in result.get("base_rows", [])]
    rows = []
    for model, row in measured:
        scores = [fixed(row.get(key), 4) for key in ("acc", "f1", "acc_and_f1")]
        sizes = [f"{row['mb']:.1f}", f"{row['smaller']:.2f}"]
        rows.append([model, row["name"], *sizes, *scores, f"{row['evaluation_s']:.1f}", f"{row['faster']:.2f}"])
    return (
        f"{table(headers, rows)}\n\n"
        f"{_where(result)}, one thread. Evaluation is the dev set at the median batch time; faster is the median "
        "of per-round ratios to torch FP32."
    )


def summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    """For README.md: what every strategy made of the models, and how much faster the narrow engines are."""
    headers = ["model", "strategy", "placement", "width", "FP32 → compressed", "points", "weights MB"]
    rows = []
    for model in CASES:
        engines = results.get(f"{model}-engines", {}).get("contestants", {})
        for part in PARTS:
            result = results.get(f"{model}-{part}", {})
            for row in result.get("candidates", []):
                width = row["notes"].get("width", "1")
                engine = engines.get(f"INT8 width {width}") if part == "dynabert+ptq" else None
                words = result["command"].split()
                cells = [model, result["strategy"], words[words.index("--placement") + 1], width]
                cells += [f"{result['baseline']:.4f} → {row['metric']:.4f}", f"{-100 * row['drop']:+.2f}"]
                speed = fixed(engine and engine["speedup"][next(iter(engines))], 2)
                rows.append([*cells, f"{row['weights_mb']:.1f}", speed])
    return table([*headers, "x whole INT8 engine"], rows)


def _where(result: Mapping[str, Any]) -> str:
    """Shape, machine and versions."""
    return (
        f"Batch {result['batch']} x {result['sequence']}, interleaved; {result['machine']['cpu']}; "
        f"{named(result['versions'], ('openvino', 'onnxruntime', 'torch'))}"
    )
