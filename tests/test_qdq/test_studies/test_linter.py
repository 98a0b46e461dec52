"""The linter beside NVIDIA's compiler: the graphs, the recorded comparison, and a sample of it compiled here."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import onnx
import pytest

from engines.tensorrt_rtx import Compiler, missing
from export.lint import lint
from export.lint.rules import RULES
from qdq.base.artifacts import read_json
from qdq.studies.linter.cases import BASE, NAMED, SMS, Case, all_cases
from qdq.studies.linter.expected import REASONS, reason_of
from qdq.studies.linter.graphs.encoder import encoder
from qdq.studies.linter.graphs.form import Form
from qdq.studies.linter.report import broken_claims
from qdq.studies.linter.verdicts import Engine, Judge, Judged, differences
from qdq.studies.study import RESULTS

SAMPLE = 20


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    result: dict[str, Any] = read_json(RESULTS / "tensorrt" / "linter.json")
    return result


def test_more_than_200_graphs_of_every_kind() -> None:
    cases = all_cases()
    assert len(cases) >= 200
    assert not [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    assert [case.name for case in cases] == [case.name for case in all_cases()]
    assert {case.sm for case in cases} == set(SMS)
    assert {case.form.body for case in cases} == {"fp32", "fp16", "bf16"}
    assert {case.form.layers for case in cases} == {1, 2, 3}
    assert len([case for case in cases if case.without]) >= 40
    assert len([case for case in cases if case.longest]) >= 20


@pytest.mark.parametrize("qkv", ["three", "merged", "split"])
@pytest.mark.parametrize("weights", ["channel", "tensor", "ratio", "float"])
def test_forms_are_valid_graphs_that_the_linter_recognizes(qkv: Any, weights: Any) -> None:
    model = encoder(Form(qkv=qkv, weights=weights, smoothing=weights == "ratio", late_scale=True))
    onnx.checker.check_model(model, full_check=True)
    roles = [layer.role for layer in lint(model, "rtx", 80).layers if layer.role]
    projections = ["query", "key", "value"] if qkv == "three" else ["qkv"]
    assert roles == [*projections, "attention_output", "ffn_up", "ffn_down"] * 2


def test_every_rule_names_graphs_that_show_its_verdict() -> None:
    for rule in RULES:
        assert set(rule.verdict.graphs) <= NAMED.keys(), rule.id
        assert rule.verdict.graphs or rule.verdict.outcome == "untested", rule.id
        assert rule.verdict.shown, rule.id


def test_the_recorded_comparison_has_a_reason_for_every_difference(recorded: dict[str, Any]) -> None:
    assert recorded["graphs"] == len(all_cases())
    assert recorded["broken_claims"] == []
    for entry in recorded["differences"]:
        assert entry["reason"] == reason_of(entry["graph"]) != "", entry
    given = {entry["reason"] for entry in recorded["differences"]}
    assert given == set(REASONS.values()), "a reason without a difference"


def test_no_refused_graph_passed_the_linter(recorded: dict[str, Any]) -> None:
    assert not [entry for entry in recorded["differences"] if "the linter passes it" in "".join(entry["differences"])]


def test_differences_are_told_in_sentences() -> None:
    linear, attention = "bert.encoder.layer.0.output.dense.MatMul", "bert.encoder.layer.0.attention.self.Softmax"
    built = Engine(kernels=12, linears=frozenset({linear}), sums=frozenset({linear}), attentions={attention: "float"})
    predicted = Engine(attentions={attention: "int8"})
    plain = Engine(kernels=10)
    assert differences(Judged(Case("x", BASE), built, predicted, (), plain)) == (
        "layer.0.output.dense.MatMul is INT8, predicted otherwise",
        "layer.0.output.dense.MatMul writes its sums as FP16, predicted otherwise",
        "layer.0.attention.self.Softmax is float, predicted int8",
        "2 more kernels than without the edit, and no finding says so",
    )
    refused = Engine(refused="no such operator")
    assert differences(Judged(Case("x", BASE), refused, predicted, (), plain)) == (
        "the linter passes it; refused: no such operator",
    )
    assert not differences(Judged(Case("x", BASE), refused, Engine(refused="QDQ-E121"), (), plain))


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason="needs the rtx extra: TensorRT for RTX's compiler")
def test_a_sample_of_the_graphs_compiled_here() -> None:
    """Twenty graphs by a seed: the same verdicts as in the whole run, in less than a minute."""
    small = [case for case in all_cases() if case.form.layers == 1 and case.most <= 64]
    with Compiler() as compiler:
        judge = Judge(compiler)
        judged = [judge.judge(case) for case in random.Random(7).sample(small, SAMPLE)]
    found = {one.case.name: differences(one) for one in judged}
    assert not {name: told for name, told in found.items() if told and not reason_of(name)}
    assert not broken_claims(judged)
