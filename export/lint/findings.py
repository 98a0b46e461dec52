"""Rules, findings and the report of a lint run: the data that the whole package shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from onnx import NodeProto

from export.lint.fusion import FusedLayer
from export.lint.graph import LintGraph
from export.lint.limits import Platform
from export.lint.patterns import Patterns
from export.reading import label

Severity = Literal["error", "performance", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "performance", "note")


@dataclass(frozen=True)
class Source:
    """Origin of a rule: the public document or header, and its address if it has one."""

    text: str
    url: str = ""


@dataclass(frozen=True)
class Subject:
    """Input of a rule: the graph, the patterns recognized in it, and the platform it is checked for."""

    graph: LintGraph
    patterns: Patterns
    platform: Platform


@dataclass(frozen=True)
class Hit:
    """One place where a rule fires, before the rule's own texts are added."""

    nodes: tuple[str, ...]
    reason: str
    tensor: str = ""


@dataclass(frozen=True)
class Rule:
    """One rule. `find` yields its hits; its docstring says when it fires and what it leaves alone."""

    id: str
    title: str
    fix: str
    source: Source
    find: Callable[[Subject], Iterator[Hit]]

    @property
    def severity(self) -> Severity:
        """Severity by the letter of the id: QDQ-E101 is an error, P costs performance, N is a note."""
        return SEVERITIES["EPN".index(self.id[4])]


@dataclass(frozen=True)
class Finding:
    """One place where a rule fires."""

    rule: str  # id such as QDQ-E101
    severity: Severity
    title: str
    nodes: tuple[str, ...]  # names of the nodes concerned, the culprit first; "Op -> tensor" for a node without a name
    tensor: str  # name of the tensor concerned, "" when the nodes say it all
    reason: str  # the fault here, and what TensorRT does about it
    fix: str  # what to change
    source: str  # the document the rule comes from


@dataclass(frozen=True)
class LintReport:
    """Every finding in rule order, and the predicted layers of the engine."""

    platform: Platform
    findings: tuple[Finding, ...]
    layers: tuple[FusedLayer, ...]

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def counts(self) -> dict[Severity, int]:
        """Number of findings per severity."""
        counted = Counter(finding.severity for finding in self.findings)
        return {severity: counted[severity] for severity in SEVERITIES}

    def as_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {
            "target": self.platform.target,
            "sm": self.platform.sm,
            "sequence": self.platform.sequence,
            "counts": dict(self.counts()),
            "findings": [{**vars(finding), "nodes": list(finding.nodes)} for finding in self.findings],
            "fusion_map": [layer.as_json() for layer in self.layers],
        }


def names(*nodes: NodeProto) -> tuple[str, ...]:
    """Labels of nodes, each once."""
    return tuple(dict.fromkeys(label(node) for node in nodes))
