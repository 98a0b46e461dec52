"""Stage 5, lower: the canonical QDQ graph in, the graph for one target and the report of every pass out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.passes.base import load_graph, save_graph
from export.passes.pipeline import passes_for
from qdq.artifacts import sha256_file, write_json

__all__ = ["lower"]


def lower(canonical: Path, target: str, folder: Path) -> dict[str, Any]:
    """Lower `canonical` for `target` into ``folder/model.onnx`` and ``folder/passes.json``; returns that report.

    Raises PassError naming the pass and node when the graph cannot be honoured, ConfigError for an unknown target.
    """
    graph = load_graph(canonical)
    steps = []
    for step in passes_for(target):
        result = step.run(graph)
        steps.append({"pass": step.name, "why": step.why, **result.as_json()})
        graph.cleanup().toposort()
    save_graph(graph, folder / "model.onnx")
    report = {"target": target, "canonical_sha256": sha256_file(canonical), "passes": steps}
    write_json(folder / "passes.json", report)
    return report
