"""A lint report as text or as SARIF 2.1.0, which code hosts and editors read.

The text has at most 80 columns, the findings grouped by rule and the fusion map as a table.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from export.lint.findings import COMPILER, SEVERITIES, Finding, LintReport, Rule
from export.lint.fusion import FusedLayer
from export.lint.rules import RULES

WIDTH = 80
SHOWN = 3  # node names listed per reason
LISTING = "AN"  # rules of these letters have one finding for all nodes, the others one for each
MAP = "predicted fusion map"
HEADINGS = {"error": "errors", "accuracy": "accuracy", "performance": "performance", "note": "notes"}


def as_text(report: LintReport, file: str) -> str:
    """The whole report for a terminal."""
    platform = report.platform
    head = f"{file}: {platform.release.name}, SM {platform.sm}, sequence {platform.sequence}"
    lines = [shorten(head, WIDTH)]
    for severity in SEVERITIES:
        findings = report.of(severity)
        if findings:
            lines += ["", f"{HEADINGS[severity]} ({len(findings)})"]
            for rule in dict.fromkeys(finding.rule for finding in findings):
                lines += _rule([finding for finding in findings if finding.rule == rule])
    lines += ["", MAP if not report.of("error") else f"{MAP}, once the errors are fixed", *_map(report.layers)]
    lines += ["", _verdict(report)]
    return "\n".join(lines) + "\n"


def _rule(findings: Sequence[Finding]) -> Iterator[str]:
    """One rule: title, every distinct reason with the first node names, the fix and the source."""
    first = findings[0]
    yield f"  {first.rule}  {first.title}" + (f"  {len(findings)}×" if len(findings) > 1 else "")
    groups = _by_reason(findings)
    for reason, nodes in groups[:SHOWN]:
        yield from _paragraph(reason, "    ", "    ")
        for name in nodes[:SHOWN]:
            yield f"      {shorten(name, WIDTH - 6)}"
        if len(nodes) > SHOWN:
            yield f"      and {len(nodes) - SHOWN} more"
    if len(groups) > SHOWN:
        yield f"    and {len(groups) - SHOWN} more places like these"
    yield from _paragraph(f"fix: {first.fix}", "    ", "         ")
    yield from _paragraph(f"from: {first.source}", "    ", "          ")
    yield from _paragraph(f"compiler: {first.compiler}", "    ", "              ")


def _by_reason(findings: Sequence[Finding]) -> list[tuple[str, list[str]]]:
    """(reason, culprit names): findings with one reason share it; a note lists all its nodes."""
    groups: dict[str, list[str]] = {}
    for finding in findings:
        shown = finding.nodes if finding.rule[4] in LISTING else finding.nodes[:1]
        groups.setdefault(finding.reason, []).extend(shown)
    return list(groups.items())


def _paragraph(text: str, first: str, rest: str) -> list[str]:
    wrapped = textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    return [shorten(line, WIDTH) for line in wrapped]


def shorten(text: str, width: int) -> str:
    """`text` in at most `width` columns; what is left out of the middle becomes an ellipsis."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"


def _map(layers: Sequence[FusedLayer]) -> Iterator[str]:
    """The predicted fusion map in a few lines, and why anything in it is not INT8."""
    linears = [layer for layer in layers if layer.role]
    attentions = [layer for layer in layers if "attention" in layer.kind or layer.kind == "unfused"]
    adds = [layer for layer in layers if layer.kind == "residual_add"]
    # Linears are counted as in the checkpoint, also where one product computes several.
    each = [layer for layer in linears for _ in range(layer.linears)]
    yield f"  encoder linears  {_share(each, 'int8_gemm')} as INT8 GEMM"
    yield f"  attention        {_share(attentions, 'int8_fused_attention')} as INT8 fused attention"
    quantized = sum(layer.precision == "int8" for layer in adds)
    yield f"  residual adds    {quantized} of {len(adds)} on INT8 operands"
    parts = Counter(part for layer in linears for part in layer.epilogue)
    if parts:
        yield f"  epilogues        {', '.join(f'{count} {part}' for part, count in parts.most_common())}"
    floats = Counter(
        (layer.kind, layer.precision) for layer in layers if layer.kind in ("layer_norm", "gelu", "softmax")
    )
    if floats:
        listed = ", ".join(f"{count} {kind} ({precision})" for (kind, precision), count in sorted(floats.items()))
        yield f"  float ops        {listed}"
    for kind, group in (("linear", linears), ("attention", attentions)):
        reasons = Counter(layer.reason for layer in group if layer.reason)
        for reason, count in reasons.most_common(SHOWN):
            yield from _paragraph(f"{count} {kind}: {reason}", "  ", "    ")


def _share(layers: Sequence[FusedLayer], kind: str) -> str:
    return f"{sum(layer.kind == kind for layer in layers)} of {len(layers)}"


def _verdict(report: LintReport) -> str:
    counts = report.counts()
    words = {
        "error": "error",
        "accuracy": "accuracy finding",
        "performance": "performance finding",
        "note": "note",
    }
    shown = ((kind, count) for kind, count in counts.items() if count or kind != "accuracy")
    listed = ", ".join(f"{count} {words[kind]}{'' if count == 1 else 's'}" for kind, count in shown)
    return "\n".join(_paragraph(f"{listed}; a prediction, no engine was built", "", ""))


SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {"error": "error", "accuracy": "warning", "performance": "warning", "note": "note"}


def as_sarif(report: LintReport, file: str) -> dict[str, Any]:
    """One run with every rule in the driver and one result per finding.

    An ONNX file has no lines: a result's place is the file and, as logical locations, the names of the nodes.
    """
    positions = {rule.id: index for index, rule in enumerate(RULES)}
    uri = quote(file.replace("\\", "/"))
    results = [
        {
            "ruleId": finding.rule,
            "ruleIndex": positions[finding.rule],
            "level": LEVELS[finding.severity],
            "message": {"text": f"{finding.reason}. Fix: {finding.fix}."},
            "locations": [
                {
                    "physicalLocation": {"artifactLocation": {"uri": uri}},
                    "logicalLocations": [{"fullyQualifiedName": name, "kind": "element"} for name in finding.nodes],
                }
            ],
            "properties": {"tensor": finding.tensor, "source": finding.source, "compiler": finding.compiler},
        }
        for finding in report.findings
    ]
    # The tool with all its rules, and the fusion map as properties of the run.
    driver = {"name": "qdq check", "rules": [_descriptor(rule, report.platform.target) for rule in RULES]}
    properties = {
        "target": report.platform.target,
        "sm": report.platform.sm,
        "sequence": report.platform.sequence,
        "fusionMap": [layer.as_json() for layer in report.layers],
    }
    run = {"tool": {"driver": driver}, "results": results, "properties": properties}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _descriptor(rule: Rule, target: str) -> dict[str, Any]:
    described: dict[str, Any] = {
        "id": rule.id,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": " ".join((rule.find.__doc__ or rule.title).split())},
        "help": {"text": f"{rule.fix}. From: {rule.source.text}."},
        "defaultConfiguration": {"level": LEVELS[rule.severity(target)]},
        "properties": {
            "compiler": {
                "version": COMPILER,
                "outcome": rule.verdict.outcome,
                "shown": rule.verdict.shown,
                "graphs": list(rule.verdict.graphs),
            }
        },
    }
    if rule.source.url:
        described["helpUri"] = rule.source.url
    return described
