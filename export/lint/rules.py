"""The linter: every rule in the order it is reported, and a graph in, findings and the predicted fusion map out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import onnx

from export.lint import (
    rules_blocks,
    rules_channels,
    rules_gemm,
    rules_notes,
    rules_structure,
    rules_types,
    rules_values,
)
from export.lint.bodies import body_models
from export.lint.findings import Finding, Hit, LintReport, Rule, Subject
from export.lint.fusion import layers_of
from export.lint.graph import LintGraph
from export.lint.limits import MIN_SM, Platform
from export.lint.recognize import recognize

RULES: tuple[Rule, ...] = (
    *rules_values.RULES,
    *rules_channels.RULES,
    *rules_structure.RULES,
    *rules_types.ERRORS,
    *rules_types.ACCURACY,
    *rules_values.ACCURACY,
    *sorted((*rules_gemm.RULES, *rules_blocks.RULES), key=lambda rule: rule.id),  # two files, one numbering
    *rules_notes.RULES,
)


def lint(model: onnx.ModelProto, target: str, sm: int = MIN_SM, sequence: int = 128) -> LintReport:
    """Check `model` against what TensorRT refuses and against what keeps it from running fast in INT8.

    `target` is trt10, trt11 or rtx, `sm` the compute capability without its point (75 for a T4), `sequence` the
    largest number of tokens where the graph leaves it open. Nothing is run or built; initializers in external files
    need not be loaded, but values that are not there are not checked. Raises ConfigError for an unknown target or a
    senseless number.
    """
    platform = Platform(target, sm, sequence)
    graph = LintGraph(model)
    subject = Subject(graph, recognize(graph), platform)
    # Notes are about a file as a whole; every other rule looks into bodies of control flow, too
    inside = list(_bodies(graph, platform, ""))
    findings: list[Finding] = []
    for rule in RULES:
        findings.extend(_finding(rule, hit, target) for hit in rule.find(subject))
        for path, body in inside if rule.id[4] != "N" else ():
            findings.extend(_finding(rule, _within(path, hit), target) for hit in rule.find(body))
    return LintReport(platform, tuple(findings), layers_of(graph, subject.patterns, sm, sequence))


def _bodies(graph: LintGraph, platform: Platform, above: str) -> Iterator[tuple[str, Subject]]:
    """Yield every body of control flow, and those in it, with the path to it."""
    for path, model in body_models(graph):
        body = LintGraph(model)
        yield f"{above}{path}", Subject(body, recognize(body), platform)
        yield from _bodies(body, platform, f"{above}{path}/")


def _within(path: str, hit: Hit) -> Hit:
    return replace(hit, nodes=tuple(f"{path}/{name}" for name in hit.nodes) or (path,))


def _finding(rule: Rule, hit: Hit, target: str) -> Finding:
    return Finding(
        rule=rule.id,
        severity=rule.severity(target),
        title=rule.title,
        nodes=hit.nodes,
        tensor=hit.tensor,
        reason=hit.reason,
        fix=rule.fix,
        source=rule.source.text,
        compiler=str(rule.verdict),
    )
