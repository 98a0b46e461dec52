"""Pictures as PNG files: matplotlib figures without a display or global state, reproducible byte by byte."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qdq.base.artifacts import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, whose parts find their own places."""
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure and wants a display

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> Path:
    """Write the PNG, without matplotlib's version. Raises DeployError when it cannot be written."""
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110, metadata={"Software": None})
    return path
