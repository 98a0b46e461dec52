"""The generated parts of README.md: results table and example output, from the JSON in docs/results/.

`make results` runs the committed commands (`qdq compile --json`) and then this; a test checks that README.md is what
this writes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdq.base.artifacts import write_text
from qdq.errors import DeployError
from qdq.pipeline.outcome import int8_text

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
EXAMPLE = "all-MiniLM-L6-v2-openvino"


def render(readme: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """README text with its generated parts replaced. Raises DeployError when a marker is missing."""
    text = _replaced(readme, "results", results_table(results))
    text = _replaced(text, "peers", peers_tables(load_results(RESULTS / "peers")), "make bench-peers")
    text = _replaced(text, "compression", compression_table(), "make compression")
    return _replaced(text, "example", example_text(results[EXAMPLE]))


def results_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per compiled model and target, then the machine and versions they were measured on."""
    lines = [
        "| model | target | INT8 linears, attention matmuls | INT8 ms | x ORT FP32 | x own FP32 | x torch FP32 "
        "| cosine to FP32 | accuracy FP32 → INT8 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(name, result) for name, result in sorted(results.items())]
    bench = results[EXAMPLE]["benchmark"]
    machine, versions = bench["machine"], bench["versions"]
    isa = ", ".join(name for name in machine["isa"] if "vnni" in name or "amx" in name)
    named = ", ".join(f"{name} {versions[name]}" for name in ("openvino", "onnxruntime", "torch", "transformers"))
    shape = f"Batch {bench['batch']} x sequence {bench['sequence']}, p50, {bench['threads']} threads"
    lines += [
        "",
        f"{shape}, contestants interleaved in one run; ratios are medians of per-round ratios. "
        f"{machine['cpu']}, {machine['cores']} cores ({isa}); {named}. "
        "Cosine and accuracy on text that was not calibrated on.",
    ]
    return "\n".join(lines)


def peers_tables(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Our engines beside other tools, one table per model."""
    from qdq.studies.peers.table import render_peers

    if not reports:
        return "Not measured yet on an idle machine: run `make bench-peers`."
    return "\n\n".join(render_peers(report) for _, report in sorted(reports.items(), reverse=True))


def compression_table() -> str:
    """What compression makes of real models."""
    from qdq.studies import compression_page as page

    return page.summary(page.load_results())


def _row(name: str, result: Mapping[str, Any]) -> str:
    int8, bench, accuracy = result["build"]["int8"], result["benchmark"]["contestants"], result["accuracy"]
    entry, metric = bench["int8"], accuracy["metric"]
    own = f"{result['target']}-fp32"
    speedups = [entry["speedup"][base] for base in ("onnxruntime-fp32", own, "torch-fp32")]
    cells = [
        name.removesuffix(f"-{result['target']}"),
        result["target"],
        f"{'/'.join(map(str, int8['encoder_linear']))}, {'/'.join(map(str, int8['attention_matmul']))}",
        f"{entry['latency_ms']['p50']:.0f}",
        *(f"{value:.2f}" for value in speedups),
        f"{accuracy['cosine_mean']:.4f}",
        f"{metric['fp32']:.4f} → {metric['int8']:.4f}" if metric else "–",
    ]
    return f"| {' | '.join(cells)} |"


def example_text(result: Mapping[str, Any]) -> str:
    """What `make engine` prints at its end."""
    from engines.bench import render_table
    from engines.compare import relate

    parts = (int8_text(dict(result["build"])), relate(dict(result["accuracy"])), render_table(result["benchmark"]))
    return "```\n" + "\n".join(parts) + "```"


def _replaced(text: str, part: str, content: str, command: str = "make results") -> str:
    begin, end = f"<!-- {part}:begin, written by `{command}` -->", f"<!-- {part}:end -->"
    head, opening, rest = text.partition(begin)
    _, closing, tail = rest.partition(end)
    if not opening or not closing:
        raise DeployError(f"README.md: has no '{begin}' … '{end}'; restore the markers")
    return f"{head}{begin}\n{content}\n{end}{tail}"


def load_results(folder: Path = RESULTS) -> dict[str, Any]:
    """Outcome JSON by file stem."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def main() -> int:
    """Rewrite README.md."""
    path = ROOT / "README.md"
    write_text(path, render(path.read_text(encoding="utf-8"), load_results()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
