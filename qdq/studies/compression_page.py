"""The generated part of docs/compression.md: tables of every JSON in docs/results/compression/.

    python -m qdq.studies.compression_page

Three kinds of file are understood: what `compress()` writes (compression.json), what the walkthrough writes
(walkthrough.json), and a benchmark of several engines (benchmark.json). A test checks that the page is up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qdq.base.artifacts import write_text
from qdq.errors import DeployError
from qdq.studies.compression_recipes import CASES, PARTS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "compression.md"
RESULTS = ROOT / "docs" / "results" / "compression"
BEGIN, END = "<!-- results:begin, written by `python -m qdq.studies.compression_page` -->", "<!-- results:end -->"


def render(page: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with its generated part replaced. Raises DeployError when a marker is missing."""
    head, opening, rest = page.partition(BEGIN)
    _, closing, tail = rest.partition(END)
    if not opening or not closing:
        raise DeployError(f"docs/compression.md: has no '{BEGIN}' … '{END}'; restore the markers")
    tables = ["\n".join(_table(name, result)) for name, result in sorted(results.items())]
    missing = [f"{model}:{part}" for model in CASES for part in PARTS if f"{model}-{part}" not in results]
    if missing:
        tables.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n".join([f"{head}{BEGIN}", "\n\n".join(tables), f"{END}{tail}"])


def _table(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    kinds = {"rows": _walkthrough, "candidates": _candidates, "contestants": _benchmark}
    for key, table in kinds.items():
        if key in result:
            yield f"### {name}\n"
            yield from table(result)
            return
    raise DeployError(f"docs/results/compression/{name}.json: is none of {', '.join(kinds)}; remove it")


def _candidates(result: Mapping[str, Any]) -> Iterator[str]:
    """What one compress() made."""
    yield "| candidate | metric | points | M parameters | weights MB |"
    yield "|---|---|---|---|---|"
    yield f"| as given | {result['baseline']:.4f} | | | |"
    for row in result["candidates"]:
        mark = " (best)" if row["name"] == result["best"] else ""
        points = f"{-100 * row['drop']:+.2f}"
        sizes = f"{row['parameters'] / 1e6:.2f} | {row['weights_mb']:.1f}"
        yield f"| {row['name']}{mark} | {row['metric']:.4f} | {points} | {sizes} |"
    for row in result["candidates"]:
        yield from _history(row["name"], row.get("notes", {}))
    if "command" in result:
        took = f" ({result['cpu_minutes']} minutes of one core)" if "cpu_minutes" in result else ""
        yield f"\n`{result['command']}`{took}"


def _history(name: str, notes: Mapping[str, Any]) -> Iterator[str]:
    """What a trained candidate started from, and which of its evaluated steps was kept."""
    if notes.get("best_step") is not None:
        before = f"; calibrated, {notes['calibrated_metric']:.4f} before" if "calibrated_metric" in notes else ""
        yield f"\n{name} is the model after step {notes['best_step']}{before}."


def _benchmark(result: Mapping[str, Any]) -> Iterator[str]:
    """Engines in one interleaved run, against the first one; with the engines' own metric where it was measured."""
    contestants, scores = result["contestants"], result.get("scores", {})
    base = next(iter(contestants))
    yield "| engine | p50 ms | faster | metric | points |"
    yield "|---|---|---|---|---|"
    for name, entry in contestants.items():
        found = scores.get(name)
        metric = ("–", "–") if found is None else (f"{found:.4f}", f"{100 * (found - scores['fp32']):+.2f}")
        cells = [name, f"{entry['latency_ms']['p50']:.1f}", f"{entry['speedup'][base]:.2f}", *metric]
        yield f"| {' | '.join(cells)} |"
    if "fp32" in scores:
        yield f"| FP32 | – | – | {scores['fp32']:.4f} | |"
    yield f"\n{_where(result)}, {result['threads']} threads; faster is the median of per-round ratios to {base}."


def _walkthrough(result: Mapping[str, Any]) -> Iterator[str]:
    """The dynamic-quantization walkthrough: the fine-tuned model, then the BERT-base shape."""
    yield "| model | contestant | MB | smaller | accuracy | F1 | mean | evaluation s | faster |"
    yield "|---|---|---|---|---|---|---|---|---|"
    rows = [(result["model"], row) for row in result["rows"]]
    rows += [("BERT-base shape", row) for row in result.get("base_rows", [])]
    for model, row in rows:
        scores = [f"{row[key]:.4f}" if key in row else "–" for key in ("acc", "f1", "acc_and_f1")]
        cells = [model, row["name"], f"{row['mb']:.1f}", f"{row['smaller']:.2f}", *scores]
        cells += [f"{row['evaluation_s']:.1f}", f"{row['faster']:.2f}"]
        yield f"| {' | '.join(cells)} |"
    yield (
        f"\n{_where(result)}, one thread. Evaluation is the dev set at the median batch time; faster is the median "
        "of per-round ratios to torch FP32."
    )


def summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    """For README.md: what every strategy made of the models, and how much faster the narrow engines are."""
    lines = [
        "| model | strategy | placement | width | FP32 → compressed | points | weights MB | x whole INT8 engine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model in CASES:
        engines = results.get(f"{model}-engines", {}).get("contestants", {})
        for part in PARTS:
            result = results.get(f"{model}-{part}", {})
            for row in result.get("candidates", []):
                width = row["notes"].get("width", "1")
                engine = engines.get(f"INT8 width {width}") if part == "dynabert+ptq" else None
                speed = "–" if engine is None else f"{engine['speedup'][next(iter(engines))]:.2f}"
                words = result["command"].split()
                cells = [model, result["strategy"], words[words.index("--placement") + 1], width]
                cells += [f"{result['baseline']:.4f} → {row['metric']:.4f}", f"{-100 * row['drop']:+.2f}"]
                cells += [f"{row['weights_mb']:.1f}", speed]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _where(result: Mapping[str, Any]) -> str:
    """Shape, machine and versions."""
    machine, versions = result["machine"], result["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("openvino", "onnxruntime", "torch") if name in versions)
    return f"Batch {result['batch']} x {result['sequence']}, interleaved; {machine['cpu']}; {named}"


def load_results(folder: Path = RESULTS) -> dict[str, Any]:
    """JSON by file stem."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def main() -> int:
    """Rewrite docs/compression.md; `qdq.studies.readme` rewrites the summary in README.md."""
    write_text(PAGE, render(PAGE.read_text(encoding="utf-8"), load_results()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
