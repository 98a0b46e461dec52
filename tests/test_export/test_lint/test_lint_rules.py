"""Every rule of `qdq check` fires on a small edit of the canonical graph and leaves near misses alone."""

from __future__ import annotations

from functools import partial

import pytest

from export.lint.findings import SEVERITIES, Rule
from export.lint.limits import RELEASES, int8_attention_limits
from export.lint.rules import RULES
from qdq.studies.linter.graphs.edits import Edit, float_attention
from qdq.studies.linter.graphs.edits_errors import half
from qdq.studies.linter.graphs.edits_types import in_bfloat16

from . import cases_errors, cases_notes, cases_performance
from .graphs import Check, fired

CASES = {
    **cases_errors.CASES,
    **cases_performance.ACCURACY,
    **cases_performance.CASES,
    **cases_notes.CASES,
}
FIRING = [(rule, change, nodes) for rule, (fires, _) in CASES.items() for change, nodes in fires]
LEAVING = [(rule, change) for rule, (_, leaves) in CASES.items() for change in leaves]


def test_the_tables_cover_every_rule() -> None:
    assert list(CASES) == [rule.id for rule in RULES]


@pytest.mark.parametrize("target", RELEASES)
def test_the_letter_of_a_rule_is_its_strictest_grade(target: str) -> None:
    strictness = {"E": 0, "A": 1, "P": 2, "N": 3}
    for rule in RULES:
        assert SEVERITIES.index(rule.severity(target)) >= strictness[rule.id[4]], rule.id


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


def test_the_same_graph_in_fp16_writes_its_sums_as_fp16(check: Check) -> None:
    def grades(target: str) -> list[tuple[str, str]]:
        return [(finding.rule, finding.severity) for finding in check(half, target=target).findings]

    assert grades("trt11") == grades("rtx") == [("QDQ-A401", "accuracy")]
    assert grades("trt10") == [("QDQ-A401", "note")]


def test_types_follow_the_gpu(check: Check) -> None:
    def absent(*changes: Edit, **options: int | str) -> bool:
        return "QDQ-E131" in fired(check(*changes, **options))

    assert [absent(in_bfloat16, sm=sm) for sm in (75, 80, 89)] == [True, False, False]
    # TensorRT for RTX has no FP32 product for Turing; TensorRT has.
    assert absent(target="rtx", sm=75)
    assert not absent(target="trt11", sm=75)
    assert not absent(target="rtx", sm=80)
    assert not absent(half, target="rtx", sm=75)


def test_profiles_of_turing_are_shorter_for_heads_of_64(check: Check) -> None:
    limits = partial(int8_attention_limits, 64, sm=75)
    assert not limits(384)
    assert limits(385) == (
        "its profile reaches sequence 385, INT8 fused attention with heads of 64 takes at most 384 on SM 7.5",
    )
    assert not limits(512, fixed=True)
    assert limits(513, fixed=True)
    assert not int8_attention_limits(64, 512, 80)
    assert not int8_attention_limits(32, 512, 75)
    assert int8_attention_limits(32, 16, 80, body="bf16") == (
        "its body is BF16, in which INT8 attention with heads of 32 does not fuse (64 does)",
    )
    assert not int8_attention_limits(64, 16, 80, body="bf16")


def test_opset_limits_follow_the_release(check: Check) -> None:
    def at(opset: int) -> tuple[str, ...]:
        return fired(check(lambda graph: graph.opset(opset), target="trt10"))

    assert "QDQ-N308" not in at(20)
    assert "QDQ-N308" in at(21)
    assert "QDQ-N308" in at(24)
    assert "QDQ-E122" in at(25)
