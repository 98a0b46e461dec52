"""Graphs to edit for the linter's tests: the canonical graph, changed by node and tensor names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from export.lint import LintReport, lint
from qdq.studies.linter.graphs.editor import Graph
from qdq.studies.linter.graphs.edits import Edit


@pytest.fixture(scope="session")
def model(canonical: Path) -> onnx.ModelProto:
    return onnx.load(canonical)


@pytest.fixture(scope="session")
def tiny_points(tiny: Any) -> tuple[str, ...]:
    """Every placed point."""
    points: tuple[str, ...] = tiny.points
    return points


@pytest.fixture(scope="session")
def edited(model: onnx.ModelProto) -> Callable[..., onnx.ModelProto]:
    """The canonical graph after some edits."""

    def apply(*edits: Edit) -> onnx.ModelProto:
        graph = Graph(model)
        for edit in edits:
            edit(graph)
        return graph.model

    return apply


@pytest.fixture(scope="session")
def check(edited: Callable[..., onnx.ModelProto]) -> Callable[..., LintReport]:
    """The report on the canonical graph after some edits; options are lint's."""

    def run(*edits: Edit, target: str = "trt11", **options: int) -> LintReport:
        return lint(edited(*edits), target, **options)

    return run
