"""The generated tables of docs/performance.md, from the JSON in docs/results/performance/.

`make profile` runs the committed command (`qdq profile --steps`) and then this; a test checks that the page is what
this writes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdq.base.artifacts import read_json, write_text
from qdq.errors import DeployError

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "docs" / "results" / "performance"
SMALLEST = 0.05  # ms: groups below it in every column have no row of their own


def render(page: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with every generated table replaced. Raises DeployError when a marker is missing."""
    for name, report in sorted(results.items()):
        begin, end = f"<!-- {name}:begin, written by `make profile` -->", f"<!-- {name}:end -->"
        head, opening, rest = page.partition(begin)
        _, closing, tail = rest.partition(end)
        if not opening or not closing:
            raise DeployError(f"docs/performance.md: has no '{begin}' … '{end}'; restore the markers")
        page = f"{head}{begin}\n{cost_table(report)}\n{end}{tail}"
    return page


def cost_table(report: Mapping[str, Any]) -> str:
    """One row per engine of a profile.json object, one column per group, and what it was measured on."""
    profiles = report["profiles"]
    names = profiles[0]["groups"]
    groups = [name for name in names if any(entry["groups"][name] >= SMALLEST for entry in profiles)]
    groups.sort(key=lambda name: -profiles[0]["groups"][name])
    lines = [f"| ms | {' | '.join(groups)} | all | INT8 gemm of peak |", "|---" * (len(groups) + 3) + "|"]
    for entry in profiles:
        gemm = entry["gemm"]["int8"]
        cells = [f"{entry['groups'][name]:.1f}" for name in groups]
        share = f"{gemm['of_peak']:.0%}" if gemm else "–"
        lines.append(f"| {entry['label']} | {' | '.join(cells)} | {entry['layers_ms']:.1f} | {share} |")
    machine, peak = report["machine"], report["peak"]
    lines += [
        "",
        f"Batch {report['batch']} x sequence {report['sequence']}, {report['threads'] or machine['cores']} threads, "
        f"precision hint {report['precision_hint']}; {machine['cpu']}, {machine['cores']} cores; measured peak "
        f"{peak['int8']:.0f} Gop/s INT8 and {peak['fp32']:.0f} FP32.",
    ]
    return "\n".join(lines)


def load_results(folder: Path = RESULTS) -> dict[str, Any]:
    """Every profile.json below `folder`, by its folder's name."""
    return {path.parent.name: read_json(path) for path in sorted(folder.glob("*/profile.json"))}


def main() -> int:
    """Rewrite docs/performance.md."""
    write_text(PAGE, render(PAGE.read_text(encoding="utf-8"), load_results()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
