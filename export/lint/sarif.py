"""A lint report as SARIF 2.1.0, which code hosts and editors read."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from export.lint.findings import LintReport, Rule
from export.lint.rules import RULES

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {"error": "error", "performance": "warning", "note": "note"}


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
            "properties": {"tensor": finding.tensor, "source": finding.source},
        }
        for finding in report.findings
    ]
    # The tool with all its rules, and the fusion map as properties of the run.
    driver = {"name": "qdq check", "rules": [_descriptor(rule) for rule in RULES]}
    properties = {
        "target": report.platform.target,
        "sm": report.platform.sm,
        "sequence": report.platform.sequence,
        "fusionMap": [layer.as_json() for layer in report.layers],
    }
    run = {"tool": {"driver": driver}, "results": results, "properties": properties}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _descriptor(rule: Rule) -> dict[str, Any]:
    described: dict[str, Any] = {
        "id": rule.id,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": " ".join((rule.find.__doc__ or rule.title).split())},
        "help": {"text": f"{rule.fix}. From: {rule.source.text}."},
        "defaultConfiguration": {"level": LEVELS[rule.severity]},
    }
    if rule.source.url:
        described["helpUri"] = rule.source.url
    return described
