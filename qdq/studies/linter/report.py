"""The linter beside the compiler, as numbers and as Markdown: what `make prove` records in docs/results/tensorrt/."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from export.lint.findings import COMPILER, Rule
from export.lint.limits import RELEASES
from export.lint.rules import RULES
from qdq.studies.linter.expected import reason_of
from qdq.studies.linter.verdicts import INT8, Judged, differences
from qdq.studies.markdown import table

LETTERS = {"E": "Errors", "A": "Accuracy", "P": "Performance", "N": "Notes"}


def recorded(judged: Sequence[Judged], version: str) -> dict[str, Any]:
    """The record of a run: totals, every rule's verdict as found, every difference with its reason."""
    found = {one.case.name: differences(one) for one in judged}
    # Totals first, then what a reader has to look into.
    return {
        "compiler": version,
        "graphs": len(judged),
        "refused_by_both": sum(bool(one.built.refused and one.predicted.refused) for one in judged),
        "int8_linears": sum(len(one.built.linears) for one in judged),
        "int8_attentions": sum(kind == INT8 for one in judged for kind in one.built.attentions.values()),
        "gpus": {str(sm): count for sm, count in sorted(Counter(one.case.sm for one in judged).items())},
        "broken_claims": list(broken_claims(judged)),
        "differences": [
            {
                "graph": one.case.name,
                "sm": one.case.sm,
                "sequence": one.case.most,
                "differences": list(found[one.case.name]),
                "reason": reason_of(one.case.name),
            }
            for one in judged
            if found[one.case.name]
        ],
    }


def broken_claims(judged: Iterable[Judged]) -> tuple[str, ...]:
    """Rules whose declared verdict is not what the compiler does with the graphs they name, as a sentence each."""
    by_name = {one.case.name: one for one in judged}
    return tuple(
        f"{rule.id}: '{name}' {problem}"
        for rule in RULES
        for name in rule.verdict.graphs
        if name in by_name and (problem := _problem(rule, by_name[name]))
    )


def _problem(rule: Rule, judged: Judged) -> str:
    """Return why a graph does not show what its rule claims; "" when it does."""
    fired = rule.id in {finding.rule for finding in judged.findings}
    if not fired and rule.verdict.outcome != "untested":
        return "does not make the rule fire"
    refused, confirmed = bool(judged.built.refused), rule.verdict.outcome == "confirmed"
    if rule.id[4] == "E" and rule.verdict.outcome != "untested":
        return "" if refused == confirmed else f"is {'refused' if refused else 'built'}"
    if refused:
        return f"is refused: {judged.built.refused}"
    if rule.id[4] == "P" and judged.plain is not None:
        return "" if bool(judged.cost) == confirmed else f"costs {judged.cost} kernels"
    return ""


def summary(result: Mapping[str, Any]) -> str:
    """The recorded run in words and a table of its differences."""
    differing, graphs = result["differences"], result["graphs"]
    gpus = ", ".join(
        f"{count} for SM {sm}" for sm, count in sorted(result["gpus"].items(), key=lambda item: int(item[0]))
    )
    head = (
        f"{graphs} graphs ({gpus}), compiled by TensorRT for RTX {result['compiler']}: linter and compiler agree on "
        f"{graphs - len(differing)}. Both refuse {result['refused_by_both']}; in the others {result['int8_linears']} "
        f"linears and {result['int8_attentions']} attentions run in INT8."
    )
    rows = [[entry["graph"], entry["sm"], "; ".join(entry["differences"]), entry["reason"]] for entry in differing]
    return f"{head}\n\n{table(['graph', 'SM', 'difference', 'reason'], rows)}" if rows else head


def rule_tables() -> str:
    """Every rule with its grades, when it fires, its source, and what the compiler says of it."""
    parts = []
    for letter, heading in LETTERS.items():
        rows = [_row(rule) for rule in RULES if rule.id[4] == letter]
        headers = ["rule", "what", "fires", "source", COMPILER, "grade elsewhere"]
        parts.append(f"**{heading}**\n\n{table(headers, rows)}")
    return "\n\n".join(parts)


def _row(rule: Rule) -> list[str]:
    fires = " ".join((rule.find.__doc__ or "").split()).removeprefix("Fires: ")
    fires = fires.partition(" Leaves alone:")[0].rstrip(".")
    source = f"[{rule.source.text}]({rule.source.url})" if rule.source.url else rule.source.text
    grades = ", ".join(f"{target}: {rule.grades[target]}" for target in RELEASES if target in rule.grades)
    return [rule.id, rule.title, fires, source, str(rule.verdict), grades]
