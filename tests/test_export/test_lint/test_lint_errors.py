"""Every error of `qdq check` fires on a small edit of the canonical graph and leaves near misses alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

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
BMM1 = f"{SELF}MatMul"
UP = f"{L0}intermediate.dense"
HEAD = "classifier.Gemm"


def edit(*steps: Edit) -> Edit:
    """Several edits as one."""

    def apply(graph: Any) -> None:
        for step in steps:
            step(graph)

    return apply


def void(_: object) -> None:
    """An edit returns nothing."""


def put(name: str, value: Any, dtype: Any) -> Edit:
    return lambda graph: void(graph.set(name, np.array(value, dtype)))


def zero_point_at_run_time(graph: Any) -> None:
    graph.node(f"{X}.quantize").input[2] = graph.run_time(f"{X}.quantize", TensorProto.INT8, "zero")


def cast_zero_point(graph: Any) -> None:
    graph.set("zero32", np.array(0, np.int32))
    zero = graph.insert(f"{X}.quantize", "Cast", ["zero32"], "zero8", to=TensorProto.INT8)
    graph.node(f"{X}.quantize").input[2] = zero


def scale_at_run_time(graph: Any) -> None:
    graph.node(f"{X}.quantize").input[1] = graph.run_time(f"{X}.quantize", TensorProto.FLOAT, "scale")


def computed_constant_scale(graph: Any) -> None:
    graph.set("half", np.array(0.5, np.float32))
    graph.node(f"{X}.quantize").input[1] = graph.insert(f"{X}.quantize", "Mul", ["half", "half"], "quarter")


def per_channel_activation(graph: Any) -> None:
    for node in ("quantize", "dequantize"):
        graph.attribute(f"{X}.{node}", "axis", 2)
    graph.set(f"{X}.scale", np.full(32, 0.1, np.float32))
    graph.set(f"{X}.zero_point", np.zeros(32, np.int8))


def per_channel_dequantize(graph: Any) -> None:
    node = graph.node(f"{X}.dequantize")
    node.input[1] = graph.set("scales", np.full(32, 0.1, np.float32))
    node.input[2] = graph.set("zeros", np.zeros(32, np.int8))
    graph.attribute(f"{X}.dequantize", "axis", 2)


def weight_scale(shape: tuple[int, ...], axis: int | None = 1, linear: str = QUERY) -> Edit:
    def apply(graph: Any) -> None:
        graph.set(f"{linear}.weight_quantizer.scale", np.full(shape, 0.01, np.float32))
        graph.set(f"{linear}.weight_quantizer.zero_point", np.zeros(shape, np.int8))
        graph.attribute(f"{linear}.weight_quantizer.dequantize", "axis", axis)

    return apply


def transposed_weight(axis: int) -> Edit:
    """The weight of the first FFN linear as (N, K), transposed behind its DQ."""

    def apply(graph: Any) -> None:
        weight_scale((64,) if axis == 0 else (32,), axis, UP)(graph)
        graph.set(f"{UP}.weight_quantizer.codes", np.ones((64, 32), np.int8))
        product = graph.node(f"{UP}.MatMul")
        product.input[1] = graph.insert(f"{UP}.MatMul", "Transpose", [product.input[1]], "turned", perm=[1, 0])

    return apply


def gemm_weight(axis: int, trans: int = 1) -> Edit:
    """The classifier Gemm with a quantized (3, 32) weight."""

    def apply(graph: Any) -> None:
        size = (3, 32)[axis]
        parameters = [graph.set("s", np.full(size, 0.1, np.float32)), graph.set("z", np.zeros(size, np.int8))]
        graph.set("codes", np.ones((3, 32) if trans else (32, 3), np.int8))
        graph.node(HEAD).input[1] = graph.insert(HEAD, "DequantizeLinear", ["codes", *parameters], "w.dq", axis=axis)
        graph.attribute(HEAD, "transB", trans)
        graph.requantize(HEAD, 0, "head")

    return apply


def foreign(op: str, domain: str) -> Edit:
    def apply(graph: Any) -> None:
        node = graph.node("bert.pooler.activation.Tanh")
        node.op_type, node.domain = op, domain
        node.input.extend(list(node.input) if op == "MatMulInteger" else [])

    return apply


def codes_into_cast(graph: Any) -> None:
    graph.insert(HEAD, "Cast", [f"{X}.quantize"], "stranger", to=TensorProto.FLOAT)


def codes_as_output(graph: Any) -> None:
    pair = graph.pair("bert.pooler.activation.Tanh", HEAD, "tail")
    assert pair == "tail.dq"
    graph.graph.node.remove(graph.node("tail.dq"))
    graph.graph.output.append(helper.make_tensor_value_info("tail.q", TensorProto.INT8, None))


def moved_codes(graph: Any) -> None:
    dequantize = graph.node(f"{SELF}matmul_k_input_quantizer.dequantize")
    turned = graph.insert(dequantize.name, "Transpose", [dequantize.input[0]], "moved", perm=[0, 1, 3, 2])
    dequantize.input[0] = turned
    graph.node(BMM1).input[1] = dequantize.output[0]


def doubled(graph: Any) -> None:
    quantize = graph.node(f"{X}.quantize")
    quantize.input[0] = graph.insert(quantize.name, "QuantizeLinear", list(quantize.input), "first.q")


def without_zero_point(*nodes: str) -> Edit:
    return lambda graph: [void(graph.node(name).input.pop()) for name in nodes] and None


PAIR = (f"{X}.quantize", f"{X}.dequantize")
ZERO = f"{X}.zero_point"
WEIGHT = f"{QUERY}.weight_quantizer.dequantize"

CASES: dict[str, tuple[Fires, Leaves]] = {
    "QDQ-E101": ([(put(ZERO, 3, np.int8), PAIR)], [put(ZERO, 0, np.uint8)]),
    "QDQ-E102": (
        [(put(ZERO, 0, np.uint8), PAIR), (put(ZERO, 0, np.int32), PAIR)],
        [put(ZERO, 3, np.int8), without_zero_point(WEIGHT)],
    ),
    "QDQ-E103": (
        [(zero_point_at_run_time, PAIR[:1]), (put(ZERO, [0, 0], np.int8), PAIR)],
        [cast_zero_point, put(ZERO, [0], np.int8), without_zero_point(WEIGHT)],
    ),
    "QDQ-E104": ([(put(f"{X}.scale", bad, np.float32), PAIR) for bad in (0, -1, np.inf, np.nan)], []),
    "QDQ-E105": ([(scale_at_run_time, PAIR[:1])], [computed_constant_scale]),
    "QDQ-E106": (
        [
            (put(f"{X}.scale", 0.1, np.float16), PAIR[:1]),
            (put(f"{X}.scale", 0.1, np.float64), PAIR),
            (edit(put(f"{X}.scale", 0.1, np.float16), lambda graph: graph.opset(17)), PAIR),
        ],
        [lambda graph: graph.half()],
    ),
    "QDQ-E111": ([(per_channel_activation, PAIR[:1])], [put(f"{X}.scale", [[0.1]], np.float32)]),
    "QDQ-E112": ([(per_channel_dequantize, PAIR[1:])], [per_channel_activation]),
    "QDQ-E113": (
        [
            (weight_scale((2, 32), 0), (WEIGHT,)),
            (lambda graph: graph.attribute(WEIGHT, "block_size", 16), (WEIGHT,)),
        ],
        [weight_scale((1, 1)), weight_scale((1,))],
    ),
    "QDQ-E114": (
        [(weight_scale((31,)), (WEIGHT,)), (weight_scale((32,), 2), (WEIGHT,)), (weight_scale((0,)), (WEIGHT,))],
        [weight_scale((2, 32), 0), weight_scale((32,), -1)],
    ),
    "QDQ-E115": ([(weight_scale((32,), None), (WEIGHT,))], [weight_scale((), None)]),
    "QDQ-E116": (
        [
            (weight_scale((32,), 0, UP), (f"{UP}.weight_quantizer.dequantize",)),
            (transposed_weight(1), (f"{UP}.weight_quantizer.dequantize",)),
            (gemm_weight(1), ("w.dq",)),
        ],
        [transposed_weight(0), gemm_weight(0), gemm_weight(1, trans=0), weight_scale((), 0)],
    ),
    "QDQ-E121": (
        [
            (foreign("DynamicQuantizeLinear", ""), ("bert.pooler.activation.Tanh",)),
            (foreign("MatMulInteger", ""), ("bert.pooler.activation.Tanh",)),
            (foreign("QAttention", "com.microsoft"), ("bert.pooler.activation.Tanh",)),
        ],
        [foreign("CustomTanh", "my.plugins")],
    ),
    "QDQ-E122": (
        [(lambda graph: graph.opset(12), ()), (lambda graph: graph.opset(26), ())],
        [lambda graph: graph.opset(13), lambda graph: graph.opset(25)],
    ),
    "QDQ-E123": ([(codes_into_cast, PAIR[:1]), (codes_as_output, ("tail.q",))], [moved_codes]),
    "QDQ-E124": ([(doubled, PAIR[:1])], [lambda graph: graph.half()]),
}

RULES = [rule for rule in ALL_RULES if rule.severity == "error"]
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
