"""Every rule of `qdq check` fires on a small edit of the canonical graph and leaves near misses alone."""

from __future__ import annotations

import pytest

from export.lint.findings import Rule
from export.lint.rules import RULES

from . import cases_errors, cases_notes, cases_performance
from .graphs import Check, Edit, fired, float_attention

CASES = {**cases_errors.CASES, **cases_performance.CASES, **cases_notes.CASES}
FIRING = [(rule, change, nodes) for rule, (fires, _) in CASES.items() for change, nodes in fires]
LEAVING = [(rule, change) for rule, (_, leaves) in CASES.items() for change in leaves]


def test_the_tables_cover_every_rule() -> None:
    assert list(CASES) == [rule.id for rule in RULES]
    assert [rule.id for rule in RULES if rule.severity == "error"] == list(cases_errors.CASES)
    assert [rule.id for rule in RULES if rule.severity == "performance"] == list(cases_performance.CASES)
    assert [rule.id for rule in RULES if rule.severity == "note"] == list(cases_notes.CASES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_cites_its_source_and_says_when_it_fires(rule: Rule) -> None:
    assert len(rule.source.text) > 20
    assert rule.source.url.startswith("https://") or "NvInfer.h" in rule.source.text
    assert rule.fix
    description = rule.find.__doc__ or ""
    assert description.startswith("Fires: ")
    assert "Leaves alone: " in " ".join(description.split())


@pytest.mark.parametrize(("rule", "change", "nodes"), FIRING)
def test_a_rule_fires(rule: str, change: Edit, nodes: tuple[str, ...], check: Check) -> None:
    found = [finding for finding in check(change).findings if finding.rule == rule]
    assert found
    assert {finding.nodes[0] for finding in found if finding.nodes} == set(nodes)


@pytest.mark.parametrize(("rule", "change"), LEAVING)
def test_a_rule_leaves_near_misses_alone(rule: str, change: Edit, check: Check) -> None:
    assert rule not in fired(check(change))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sequence": 513}, "its sequence is 513, INT8 fused attention takes at most 512"),
        ({"sm": 70}, "compute capability 7.0 is below 7.5, where fused attention starts"),
    ],
)
def test_limits_of_fused_attention_come_from_the_options(options: dict[str, int], reason: str, check: Check) -> None:
    found = check(**options).of("performance")
    assert [(finding.rule, finding.reason) for finding in found] == [("QDQ-P210", reason)] * 2
    assert len(check(float_attention, **options).of("performance")) == 1  # layer 0 is float now, layer 1 as before
    assert not check(sequence=512).of("performance")


def test_the_canonical_graph_has_only_the_note_about_its_fp32_body(check: Check) -> None:
    assert fired(check()) == ("QDQ-N304",)
    assert fired(check(target="trt10")) == ("QDQ-N304",)


def test_the_same_graph_in_fp16_has_no_finding_at_all(check: Check) -> None:
    assert fired(check(lambda graph: graph.half())) == ()


def test_opset_limits_follow_the_release(check: Check) -> None:
    def at(opset: int) -> tuple[str, ...]:
        return fired(check(lambda graph: graph.opset(opset), target="trt10"))

    assert "QDQ-N308" not in at(20)
    assert "QDQ-N308" in at(21)
    assert "QDQ-N308" in at(24)
    assert "QDQ-E122" in at(25)
