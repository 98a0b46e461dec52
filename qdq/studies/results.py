"""Places of the measured figures: one JSON file per run below docs/results/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdq.base.artifacts import read_json

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RESULTS = DOCS / "results"
SHARED = Path("../shared")  # models/ and data/ beside the repository, as recorded commands name them


def load_results(folder: Path) -> dict[str, Any]:
    """The JSON files of `folder` by name without suffix, in order of names. Raises DeployError for a damaged one."""
    return {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
