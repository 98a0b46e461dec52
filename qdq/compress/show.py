"""The table of candidates at the end of a compression."""

from __future__ import annotations

from rich.table import Table

from qdq.compress.step import CompressionResult
from qdq.screen import Screen


def show_result(screen: Screen, result: CompressionResult) -> None:
    """Print every candidate with its metric, its change in points against the given model, and its size."""
    table = Table(box=None, pad_edge=False)
    for column in ("candidate", "metric", "points", "M parameters"):
        table.add_column(column, justify="left" if column == "candidate" else "right", no_wrap=True)
    table.add_row("as given", f"{result.baseline:.4f}", "", "")
    for row in result.as_json()["candidates"]:
        mark = " *" if row["name"] == result.best.name else ""
        table.add_row(
            row["name"] + mark, f"{row['metric']:.4f}", f"{-100 * row['drop']:+.2f}", f"{row['parameters'] / 1e6:.2f}"
        )
    screen.console.print(table)
    screen.line(f"* best: {result.folders[result.best.name]}")
