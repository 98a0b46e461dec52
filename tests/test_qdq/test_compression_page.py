"""docs/compression.md: its tables are what the committed JSON gives, its scripts and steps exist."""

from __future__ import annotations

import re

import pytest

from qdq.compress.page import BEGIN, END, PAGE, ROOT, load_results, render
from qdq.compress.strategy import STEPS
from qdq.errors import DeployError


def test_the_tables_are_what_the_results_give() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert render(page, load_results()) == page, "run 'python -m qdq.compress.page'"


def test_named_files_exist_and_every_step_is_listed() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"examples/[a-z_.]+", page):
        assert (ROOT / name.rstrip(".")).is_file(), name
    for step in STEPS:
        assert f"| `{step}` |" in page


def test_every_kind_of_result_has_a_table() -> None:
    candidate = {"name": "mse-4x1", "metric": 0.8, "drop": 0.01, "parameters": 2_000_000}
    compression = {"baseline": 0.81, "best": "mse-4x1", "candidates": [candidate]}
    text = render(f"a\n{BEGIN}\nold\n{END}\nb", {"mrpc": compression})
    assert "| mse-4x1 (best) | 0.8000 | -1.00 | 2.00 |" in text
    assert "old" not in text and text.startswith("a\n") and text.endswith("\nb")
    with pytest.raises(DeployError, match="is none of"):
        render(f"{BEGIN}\n{END}", {"odd": {"x": 1}})
    with pytest.raises(DeployError, match="restore the markers"):
        render("nothing", {})
