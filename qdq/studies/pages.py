"""README.md and the pages in docs/ with their generated parts: ``python -m qdq.studies.pages`` writes them anew.

Everything comes from the JSON that is there, mostly in docs/results/, so this measures nothing; whatever measures ends
with it, and a test checks that the pages are what it writes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from engines.estimate.model import VALIDATION
from qdq.base.artifacts import read_json, write_text
from qdq.studies import accuracy_page, compression_page, tables
from qdq.studies.command import exit_code
from qdq.studies.markdown import filled
from qdq.studies.peers.table import render_peers
from qdq.studies.results import DOCS, RESULTS, ROOT, load_results


def pages() -> dict[Path, str]:
    """The text of every page. Raises DataError when one lacks a marker."""
    compiled, peers = load_results(RESULTS), load_results(RESULTS / "peers")
    compressed = load_results(RESULTS / "compression")
    profiles = sorted((RESULTS / "performance").glob("*/profile.json"))
    readme = {
        "results": tables.results_table(compiled),
        "peers": "\n\n".join(render_peers(peers[name]) for name in sorted(peers, reverse=True)),
        "compression": compression_page.summary(compressed),
        "example": tables.example_text(compiled[tables.EXAMPLE]),
    }
    parts = {
        ROOT / "README.md": readme,
        DOCS / "compression.md": {"results": compression_page.sections(compressed)},
        DOCS / "performance.md": {path.parent.name: tables.cost_table(read_json(path)) for path in profiles},
        DOCS / "tensorrt.md": {"proof": tables.proof_table(load_results(RESULTS / "tensorrt"))},
        DOCS / "estimate.md": {"validation": tables.estimate_tables(read_json(VALIDATION))},
    }
    return {page: filled(page, part) for page, part in parts.items()} | {DOCS / "accuracy.md": accuracy_page.page()}


def main() -> None:
    """Write every page."""
    for path, text in pages().items():
        write_text(path, text)


if __name__ == "__main__":
    sys.exit(exit_code(main))
