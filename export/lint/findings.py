"""Rules, findings and the report of a lint run: the data that the whole package shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from onnx import NodeProto

from export.lint.fusion import FusedLayer
from export.lint.graph import LintGraph
from export.lint.limits import Platform
from export.lint.patterns import Patterns
from export.reading import label

# error: refused; accuracy: built, but it may compute other numbers than the file says; performance: built, but slower
# than it could be; note: worth knowing.
Severity = Literal["error", "accuracy", "performance", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "accuracy", "performance", "note")
COMPILER = "TensorRT for RTX 1.7.1"  # the version the verdicts are of


@dataclass(frozen=True)
class Source:
    """Origin of a rule: the public document or header, and its address if it has one."""

    text: str
    url: str = ""


@dataclass(frozen=True)
class Verdict:
    """Outcome of a rule's claim in NVIDIA's compiler, which builds TensorRT for RTX engines without a GPU.

    `graphs` are the ones that show it, by name in `qdq.studies.linter.cases`; `make prove` compiles them again.
    """

    outcome: Literal["confirmed", "contradicted", "untested"]
    shown: str  # what the compiler does with the graphs; for an untested rule, why it cannot be tested
    graphs: tuple[str, ...] = ()

    def __str__(self) -> str:
        """``confirmed: refused by the parser``."""
        return f"{self.outcome}: {self.shown}"


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
    """One rule. `find` yields its hits; its docstring says when it fires and what it leaves alone.

    The letter of the id is the grade where nothing else is said: QDQ-E101 is an error, A touches accuracy, P costs
    performance, N is a note. `grades` names the targets for which it is another one, because the compiler shows it.
    """

    id: str
    title: str
    fix: str
    source: Source
    verdict: Verdict
    find: Callable[[Subject], Iterator[Hit]]
    grades: Mapping[str, Severity] = field(default_factory=dict)

    def severity(self, target: str) -> Severity:
        """Grade of a finding of this rule for one target."""
        return self.grades.get(target, SEVERITIES["EAPN".index(self.id[4])])


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
    compiler: str  # whether NVIDIA's compiler confirms the rule, and what it does


@dataclass(frozen=True)
class LintReport:
    """Every finding in rule order, and the predicted layers of the engine."""

    platform: Platform
    findings: tuple[Finding, ...]
    layers: tuple[FusedLayer, ...]

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def fails(self, strict: bool) -> bool:
        """Return whether `qdq check` ends with 1: an error, with `strict` also an accuracy or performance finding."""
        failing = SEVERITIES[:-1] if strict else SEVERITIES[:1]
        return any(finding.severity in failing for finding in self.findings)

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
