"""The table of candidates at the end of a compression."""

from __future__ import annotations

from rich.table import Table

from qdq.base.screen import Screen
from qdq.compress.step import CompressionResult


def show_result(screen: Screen, result: CompressionResult) -> None:
    """Print every candidate with its metric, its change in points against the given model, and its stored weights."""
    table = Table(box=None, pad_edge=False)
    for column in ("candidate", "metric", "points", "M parameters", "MB"):
        table.add_column(column, justify="left" if column == "candidate" else "right", no_wrap=True)
    table.add_row("as given", f"{result.baseline:.4f}", "", "", "")
    for row in result.as_json()["candidates"]:
        mark = " *" if row["name"] == result.best.name else ""
        numbers = (f"{row['metric']:.4f}", f"{-100 * row['drop']:+.2f}", f"{row['parameters'] / 1e6:.2f}")
        table.add_row(row["name"] + mark, *numbers, "–" if row["weights_mb"] is None else f"{row['weights_mb']:.1f}")
    screen.console.print(table)
    screen.line(f"* best: {result.folders[result.best.name]}")
