"""Every note of `qdq check` fires on a small edit of the canonical graph and leaves near misses alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from export.lint import LintReport
from export.lint.findings import Rule
from export.lint.rules import RULES as ALL_RULES

Edit = Callable[[Any], None]
Check = Callable[..., LintReport]
Fires = list[tuple[Edit, tuple[str, ...]]]
Leaves = list[Edit]

L0 = "bert.encoder.layer.0."
SELF = f"{L0}attention.self."
X = f"{SELF}query.input_quantizer"  # the layer input: one pair for query, key, value and the residual add
QUERY = f"{SELF}query"
SOFTMAX, BMM1, BMM2 = f"{SELF}Softmax", f"{SELF}MatMul", f"{SELF}MatMul_1"
ADD = f"{L0}output.Add"
HEAD = "classifier.Gemm"


def edit(*steps: Edit) -> Edit:
    """Several edits as one."""

    def apply(graph: Any) -> None:
        for step in steps:
            step(graph)

    return apply


def void(_: object) -> None:
    """An edit returns nothing."""


def float_linear(graph: Any) -> None:
    graph.float_operand(f"{QUERY}.MatMul", 0)
    graph.float_operand(f"{QUERY}.MatMul", 1)


def float_attention(graph: Any) -> None:
    for node in (BMM1, BMM2):
        for operand in (0, 1):
            graph.float_operand(node, operand)


def float_residual(graph: Any) -> None:
    graph.float_operand(ADD, 0)
    graph.float_operand(ADD, 1)


def scalar(graph: Any) -> None:
    mean = graph.insert(HEAD, "ReduceMean", ["bert.pooler.activation.Tanh"], "scalar", keepdims=0)
    head = graph.node(HEAD)
    bias = graph.insert(HEAD, "Add", ["classifier.bias", graph.pair(mean, HEAD, "point")], "shifted")
    head.input[2] = bias


def without_zero_point(*nodes: str) -> Edit:
    return lambda graph: [void(graph.node(name).input.pop()) for name in nodes] and None


def ir_version(version: int) -> Edit:
    return lambda graph: setattr(graph.model, "ir_version", version)


PAIR = (f"{X}.quantize", f"{X}.dequantize")
WEIGHT = f"{QUERY}.weight_quantizer.dequantize"

CASES: dict[str, tuple[Fires, Leaves]] = {
    "QDQ-N301": (
        [(float_attention, (SOFTMAX,))],
        [lambda graph: graph.float_operand(BMM1, 1), lambda graph: graph.strip()],
    ),
    "QDQ-N302": ([(float_residual, (ADD,))], [lambda graph: graph.float_operand(ADD, 0)]),
    "QDQ-N303": (
        [(float_linear, (f"{QUERY}.MatMul",))],
        [lambda graph: graph.float_operand(f"{QUERY}.MatMul", 1), lambda graph: graph.strip()],
    ),
    "QDQ-N304": (
        [(edit(), ("bert.embeddings.LayerNorm.LayerNormalization",))],
        [lambda graph: graph.half(), lambda graph: graph.strip()],
    ),
    "QDQ-N305": ([(without_zero_point(*PAIR), PAIR[:1])], [without_zero_point(WEIGHT)]),
    "QDQ-N306": ([(scalar, ("point.q",))], []),
    "QDQ-N307": ([(ir_version(14), ())], [ir_version(13)]),
    "QDQ-N308": ([(lambda graph: graph.opset(25), ())], [lambda graph: graph.opset(24)]),
    "QDQ-N309": ([(lambda graph: graph.strip(), ())], []),
}

RULES = [rule for rule in ALL_RULES if rule.severity == "note"]
FIRING = [(rule, change, nodes) for rule, (fires, _) in CASES.items() for change, nodes in fires]
LEAVING = [(rule, change) for rule, (_, leaves) in CASES.items() for change in leaves]


def test_the_table_covers_every_rule() -> None:
    assert list(CASES) == [rule.id for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_cites_its_source_and_says_when_it_fires(rule: Rule) -> None:
    assert len(rule.source.text) > 20
    assert rule.source.url.startswith("https://") or "NvInfer.h" in rule.source.text
    assert rule.fix
    description = rule.find.__doc__ or ""
    assert description.startswith("Fires: ")
    assert "Leaves alone: " in " ".join(description.split())
    assert rule.severity[0].upper() == rule.id[4]


@pytest.mark.parametrize(("rule", "change", "nodes"), FIRING)
def test_a_rule_fires(rule: str, change: Edit, nodes: tuple[str, ...], check: Check) -> None:
    found = [finding for finding in check(change).findings if finding.rule == rule]
    assert found
    assert {finding.nodes[0] for finding in found if finding.nodes} == set(nodes)


@pytest.mark.parametrize(("rule", "change"), LEAVING)
def test_a_rule_leaves_near_misses_alone(rule: str, change: Edit, check: Check) -> None:
    assert rule not in check(change).rules()


def test_the_canonical_graph_has_only_the_note_about_its_fp32_body(check: Check) -> None:
    assert check().rules() == ("QDQ-N304",)
    assert check(target="trt10").rules() == ("QDQ-N304",)


def test_the_same_graph_in_fp16_has_no_finding_at_all(check: Check) -> None:
    assert check(lambda graph: graph.half()).rules() == ()


def test_opset_limits_follow_the_release(check: Check) -> None:
    def at(opset: int) -> tuple[str, ...]:
        return check(lambda graph: graph.opset(opset), target="trt10").rules()

    assert "QDQ-N308" not in at(20)
    assert "QDQ-N308" in at(21)
    assert "QDQ-N308" in at(24)
    assert "QDQ-E122" in at(25)
