"""Every performance finding of `qdq check` fires on a small edit of the canonical graph, and not on near misses."""

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
QUERY, KEY = f"{SELF}query", f"{SELF}key"
SOFTMAX, BMM1, BMM2 = f"{SELF}Softmax", f"{SELF}MatMul", f"{SELF}MatMul_1"
UP, ADD = f"{L0}intermediate.dense", f"{L0}output.Add"
GELU = f"{L0}intermediate.intermediate_act_fn.Gelu"
NORM = f"{L0}output.LayerNorm.LayerNormalization"
HEAD = "classifier.Gemm"


def edit(*steps: Edit) -> Edit:
    """Several edits as one."""

    def apply(graph: Any) -> None:
        for step in steps:
            step(graph)

    return apply


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


def moved_codes(graph: Any) -> None:
    dequantize = graph.node(f"{SELF}matmul_k_input_quantizer.dequantize")
    turned = graph.insert(dequantize.name, "Transpose", [dequantize.input[0]], "moved", perm=[0, 1, 3, 2])
    dequantize.input[0] = turned
    graph.node(BMM1).input[1] = dequantize.output[0]


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


def quantized_input(graph: Any) -> None:
    graph.graph.input.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, [1, 1, 32]))
    add = graph.node("bert.embeddings.Add_1")
    add.input[1] = graph.pair("extra", add.name, "extra_pair")


def requantized(graph: Any) -> None:
    graph.requantize(f"{QUERY}.MatMul", 0, "again", 0.3)


def same_scale_again(graph: Any) -> None:
    graph.requantize(f"{QUERY}.MatMul", 0, "again", float(graph.value(f"{X}.scale")))


def written_norm(graph: Any, crossed: bool) -> None:
    """The layer's last LayerNormalization in primitive ops, with a pair inside or not."""
    x, output = graph.node(NORM).input[0], graph.node(NORM).output[0]
    graph.set("two", np.array(2, np.float32))
    graph.set("axes", np.array([-1], np.int64))
    mean = graph.insert(NORM, "ReduceMean", [x, "axes"], "n.mean")
    centred = graph.insert(NORM, "Sub", [x, mean], "n.sub")
    squared = graph.insert(NORM, "Pow", [centred, "two"], "n.pow")
    if crossed:
        squared = graph.pair(squared, NORM, "inside")
    variance = graph.insert(NORM, "ReduceMean", [squared, "axes"], "n.var")
    graph.set("epsilon", np.array(1e-12, np.float32))
    root = graph.insert(NORM, "Sqrt", [graph.insert(NORM, "Add", [variance, "epsilon"], "n.eps")], "n.sqrt")
    unit = graph.insert(NORM, "Div", [centred, root], "n.div")
    scaled = graph.insert(NORM, "Mul", [unit, graph.node(NORM).input[1]], "n.mul")
    last = graph.node(NORM)
    last.CopyFrom(helper.make_node("Add", [scaled, last.input[2]], [output], NORM))


def written_gelu(graph: Any, crossed: bool) -> None:
    """The GELU as an erf chain, with a pair inside or not."""
    x, output = graph.node(GELU).input[0], graph.node(GELU).output[0]
    for name, value in (("root2", 2**0.5), ("one", 1.0), ("half", 0.5)):
        graph.set(name, np.array(value, np.float32))
    erf = graph.insert(GELU, "Erf", [graph.insert(GELU, "Div", [x, "root2"], "g.div")], "g.erf")
    if crossed:
        erf = graph.pair(erf, GELU, "inside")
    plus = graph.insert(GELU, "Add", [erf, "one"], "g.add")
    product = graph.insert(GELU, "Mul", [x, plus], "g.mul")
    graph.node(GELU).CopyFrom(helper.make_node("Mul", [product, "half"], [output], GELU))


def tanh_gelu(graph: Any) -> None:
    """The GELU as the tanh approximation: ½x·(1+tanh(√(2/π)·(x+0.044715·x³)))."""
    x, output = graph.node(GELU).input[0], graph.node(GELU).output[0]
    for name, value in (("three", 3.0), ("c", 0.044715), ("root", 0.7978846), ("one", 1.0), ("half", 0.5)):
        graph.set(name, np.array(value, np.float32))
    cube = graph.insert(GELU, "Mul", [graph.insert(GELU, "Pow", [x, "three"], "g.pow"), "c"], "g.cube")
    inner = graph.insert(GELU, "Mul", [graph.insert(GELU, "Add", [x, cube], "g.sum"), "root"], "g.inner")
    plus = graph.insert(GELU, "Add", [graph.insert(GELU, "Tanh", [inner], "g.tanh"), "one"], "g.plus")
    halved = graph.insert(GELU, "Mul", [x, "half"], "g.half")
    graph.node(GELU).CopyFrom(helper.make_node("Mul", [halved, plus], [output], GELU))


def late_cast(graph: Any) -> None:
    """FP16 graph whose DQ in front of one product makes FP32, cast back: what opset 17 exporters write."""
    graph.half()
    dequantize = graph.node(f"{UP}.input_quantizer.dequantize")
    wide = graph.set("wide", graph.value(dequantize.input[1]).astype(np.float32))
    product = graph.node(f"{UP}.MatMul")
    inputs = [dequantize.input[0], wide, dequantize.input[2]]
    made = graph.insert(product.name, "DequantizeLinear", inputs, "wide.dq")
    product.input[0] = graph.insert(product.name, "Cast", [made], "narrow", to=TensorProto.FLOAT16)


def useless_cast(graph: Any) -> None:
    product = graph.node(f"{UP}.MatMul")
    product.input[0] = graph.insert(product.name, "Cast", [product.input[0]], "noop", to=TensorProto.FLOAT)


def second_quantizer(scale: float | None) -> Edit:
    """Another pair on the layer input for the key linear."""

    def apply(graph: Any) -> None:
        value = float(graph.value(f"{X}.scale")) if scale is None else scale
        source = graph.node(f"{X}.quantize").input[0]
        graph.node(f"{KEY}.MatMul").input[0] = graph.pair(source, f"{KEY}.MatMul", "second", value)

    return apply


def second_reader(graph: Any) -> None:
    """Another DQ on the codes of the layer input."""
    first = graph.node(f"{X}.dequantize")
    graph.node(f"{KEY}.MatMul").input[0] = graph.insert(
        f"{KEY}.MatMul", "DequantizeLinear", list(first.input), "second.dq"
    )


def head_size(size: int) -> Edit:
    def apply(graph: Any) -> None:
        for name in ("Reshape", "Reshape_1", "Reshape_2"):
            graph.set(f"{SELF}{name}.shape", np.array([0, 0, 32 // size, size], np.int64))

    return apply


def scaled_scores(op: str) -> Edit:
    def apply(graph: Any) -> None:
        graph.set("root", np.array(4.0, np.float32))
        add = graph.node(f"{SELF}Add")
        add.input[0] = graph.insert(add.name, op, [add.input[0], "root"], "late")

    return apply


def masked_by_where(graph: Any) -> None:
    """Another mask form: Where on the scores instead of an added bias."""
    graph.set("low", np.array(-1e4, np.float32))
    keep = graph.insert(f"{SELF}Add", "Cast", [graph.node(f"{SELF}Add").input[1]], "keep", to=TensorProto.BOOL)
    graph.node(f"{SELF}Add").CopyFrom(helper.make_node("Where", [keep, "low", BMM1], [f"{SELF}Add"], f"{SELF}Add"))


def scaled_query(graph: Any) -> None:
    graph.set("root", np.array(0.25, np.float32))
    quantize = graph.node(f"{SELF}matmul_q_input_quantizer.quantize")
    quantize.input[0] = graph.insert(quantize.name, "Mul", [quantize.input[0], "root"], "early")


PAIR = (f"{X}.quantize", f"{X}.dequantize")

CASES: dict[str, tuple[Fires, Leaves]] = {
    "QDQ-P201": (
        [
            (lambda graph: graph.float_operand(f"{QUERY}.MatMul", 0), (f"{QUERY}.MatMul",)),
            (lambda graph: graph.float_operand(f"{QUERY}.MatMul", 1), (f"{QUERY}.MatMul",)),
            (lambda graph: graph.requantize(HEAD, 0, "head"), (HEAD,)),
        ],
        [float_linear, lambda graph: graph.float_operand(BMM1, 0), transposed_weight(0)],
    ),
    "QDQ-P202": (
        [
            (lambda graph: graph.float_operand(ADD, 0), (ADD,)),
            (lambda graph: graph.float_operand(ADD, 1), (ADD,)),
        ],
        [float_residual, lambda graph: graph.requantize("bert.embeddings.Add", 0, "word")],
    ),
    "QDQ-P203": (
        [
            (lambda graph: graph.float_operand(BMM1, 1), (SOFTMAX,)),
            (edit(masked_by_where, lambda graph: graph.float_operand(BMM2, 0)), (SOFTMAX,)),
        ],
        [float_attention, moved_codes, masked_by_where],
    ),
    "QDQ-P204": (
        [
            (float_linear, (f"{SELF}matmul_q_input_quantizer.quantize",)),
            (quantized_input, ("extra_pair.q",)),
            (requantized, ("again.q",)),
        ],
        [same_scale_again, float_attention, lambda graph: graph.requantize("bert.embeddings.Add", 0, "word")],
    ),
    "QDQ-P205": (
        [
            (lambda graph: graph.requantize(NORM, 0, "sum"), ("sum.q",)),
            (lambda graph: written_norm(graph, True), ("inside.q",)),
        ],
        [lambda graph: written_norm(graph, False)],
    ),
    "QDQ-P206": (
        [
            (lambda graph: graph.requantize(f"{UP}.Add", 0, "product"), ("product.q",)),
            (lambda graph: graph.requantize(GELU, 0, "biased"), ("biased.q",)),
            (lambda graph: written_gelu(graph, True), ("inside.q",)),
        ],
        [lambda graph: written_gelu(graph, False), tanh_gelu],
    ),
    "QDQ-P207": ([(late_cast, ("narrow",))], [useless_cast, lambda graph: graph.half()]),
    "QDQ-P208": ([(second_quantizer(None), PAIR[:1])], [second_quantizer(0.3), second_reader]),
    "QDQ-P209": ([(second_quantizer(0.3), PAIR[:1])], [second_quantizer(None), second_reader]),
    "QDQ-P210": ([(head_size(8), (SOFTMAX,))], [head_size(32), float_attention]),
    "QDQ-P211": ([(gemm_weight(0), (HEAD,))], [lambda graph: graph.requantize(HEAD, 0, "head")]),
    "QDQ-P212": (
        [(scaled_scores("Mul"), ("late",)), (scaled_scores("Div"), ("late",))],
        [scaled_query, masked_by_where],
    ),
}

RULES = [rule for rule in ALL_RULES if rule.severity == "performance"]
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
