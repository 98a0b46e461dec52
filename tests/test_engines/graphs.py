"""Graphs that tests of several engines start from; conftest.py writes the canonical one."""

from __future__ import annotations

from pathlib import Path

from export.passes import lower


def lowered(canonical: Path) -> Path:
    """The graph of a canonical one as it is lowered for ONNX Runtime: activations in u8."""
    folder = canonical.parent / f"{canonical.stem}.u8"
    lower(canonical, "onnxruntime", folder)
    return folder / "model.onnx"
