"""Structural check of the canonical QDQ graph: every rule a target relies on, all broken ones named at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from export.check_rules import RULES, CanonicalGraph, onnx_checker
from export.inventory import GraphIndex
from export.names import DEQUANTIZE, QUANTIZE
from export.points import consumers
from export.reading import read_onnx
from qdq.errors import ExportError


@dataclass(frozen=True)
class CheckReport:
    """Contents of a graph that passed.

    Attributes:
        quantize: number of QuantizeLinear nodes.
        dequantize: number of DequantizeLinear nodes.
        weights: how many of the latter read a constant.
        shared: point -> name of the DequantizeLinear that serves it, for points the exporter merged because they
            quantize one tensor with one scale (q, k and v inputs, a linear input and the residual beside it).
    """

    quantize: int
    dequantize: int
    weights: int
    shared: Mapping[str, str]


def check_canonical(model: onnx.ModelProto, expected_points: Sequence[str] | None = None) -> CheckReport:
    """Check a loaded graph; `expected_points` are the placed points of placement.json (None: any).

    Raises ExportError listing every broken rule with the node or tensor and what to do.
    """
    return _check(model, model, "", "the graph", expected_points)


def check_file(path: Path, expected_points: Sequence[str] | None = None) -> CheckReport:
    """Check a file as `check_canonical` checks a model; external data is found beside it and read tensor by tensor.

    Raises ExportError also when the file or its external data cannot be read.
    """
    model = read_onnx(path, ExportError)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and not (path.parent / entry.value).is_file():
                raise ExportError(f"{path}: its weights lie in '{entry.value}', which is not beside it; export again")
    return _check(model, str(path), str(path.parent), str(path), expected_points)


def _check(
    model: onnx.ModelProto, to_checker: onnx.ModelProto | str, folder: str, what: str, expected: Sequence[str] | None
) -> CheckReport:
    graph = CanonicalGraph(model, GraphIndex(model.graph), folder)
    problems = list(onnx_checker(to_checker))
    for rule in RULES:
        problems.extend(rule(graph))
    shared: dict[str, str] = {}
    if expected is not None:
        shared, missing = _points(graph, expected)
        problems.extend(missing)
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise ExportError(f"{what} breaks {len(problems)} rule(s) of the canonical graph:\n{listed}")
    dequantize = [node for node in graph.nodes if node.op_type == DEQUANTIZE]
    weights = sum(graph.weight(node) is not None for node in dequantize)
    quantize = sum(node.op_type == QUANTIZE for node in graph.nodes)
    return CheckReport(quantize, len(dequantize), weights, shared)


def _points(graph: CanonicalGraph, expected: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Points served by another point's pair, and problems: placed points without a pair, pairs without a point."""
    shared: dict[str, str] = {}
    problems: list[str] = []
    for point in expected:
        made = ("dequantize",) if point.endswith(".weight_quantizer") else ("quantize", "dequantize")
        if all(f"{point}.{name}" in graph.index.nodes for name in made):
            continue
        server = _server(graph, point)
        if server is None:
            problems.append(
                f"{point}: placed, but no QuantizeLinear/DequantizeLinear serves it; inject and export again"
            )
        else:
            shared[point] = server
    for node in graph.pairs:
        owner = re.sub(r"\.(de)?quantize(_\d+)?$", "", node.name)
        if owner not in expected:
            problems.append(f"{node.name}: not a point of placement.json; export the module that placement describes")
    return shared, problems


def _server(graph: CanonicalGraph, point: str) -> str | None:
    """Name of the DequantizeLinear in front of the operand that `point` quantizes."""
    for node, operand in consumers(graph.nodes, point):
        dequantize = graph.index.dequantizer(node.input[operand])
        if dequantize is not None:
            return dequantize.name
    return None
