"""Lowering passes on graphs of a few nodes: fire, decline, leave alone, compute the same bits, change nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.passes.base import PassResult
from export.passes.pipeline import passes_for
from export.passes.recode_unsigned import recode_unsigned
from export.passes.share_quantizers import share_quantizers
from export.unoptimized import open_unoptimized, run
from qdq.errors import ConfigError, PassError

SELF = "encoder.layer.0.attention.self"
WIDTH = 8


class Small:
    """A graph under construction: x [N, 8] in, whatever is marked as an output out."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.outputs: dict[str, int] = {}

    def constant(self, name: str, value: Any) -> str:
        self.initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def quantize(self, tensor: str, point: str, scale: Any = 0.05, zero: Any = 0) -> str:
        names = [self.constant(f"{point}.scale", np.asarray(scale, np.float32))]
        names.append(self.constant(f"{point}.zero_point", np.asarray(zero, np.int8)))
        return self.node("QuantizeLinear", [tensor, *names], f"{point}.quantize")

    def dequantize(self, codes: str, point: str, **attributes: Any) -> str:
        names = [codes, f"{point}.scale", f"{point}.zero_point"]
        return self.node("DequantizeLinear", names, f"{point}.dequantize", **attributes)

    def pair(self, tensor: str, point: str, scale: Any = 0.05) -> str:
        return self.dequantize(self.quantize(tensor, point, scale), point)

    def linear(self, tensor: str, name: str, seed: int) -> str:
        """A MatMul with INT8 weights, the result an output of the graph."""
        point = f"{SELF}.{name}.weight_quantizer"
        codes = np.random.default_rng(seed).integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8)
        self.constant(f"{point}.scale", np.linspace(1e-3, 2e-3, WIDTH).astype(np.float32))
        self.constant(f"{point}.zero_point", np.zeros(WIDTH, np.int8))
        weight = self.dequantize(self.constant(f"{point}.codes", codes), point, axis=1)
        return self.output(self.node("MatMul", [tensor, weight], f"{SELF}.{name}.MatMul"))

    def output(self, tensor: str, element: int = TensorProto.FLOAT) -> str:
        self.outputs[tensor] = element
        return tensor

    def model(self) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])
        outputs = [helper.make_tensor_value_info(name, element, ["n", WIDTH]) for name, element in self.outputs.items()]
        graph = helper.make_graph(self.nodes, "qdq", [x], outputs, list(self.initializers.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


def projections(*scales: float) -> onnx.ModelProto:
    """The q, k and v projections of one tensor, each behind a pair of its own."""
    small = Small()
    for index, (name, scale) in enumerate(zip(("query", "key", "value"), scales, strict=True)):
        small.linear(small.pair("x", f"{SELF}.{name}.input_quantizer", scale), name, index)
    return small.model()


def apply(step: Callable[[gs.Graph], PassResult], model: onnx.ModelProto) -> tuple[PassResult, onnx.ModelProto]:
    """One pass as `lower` runs it; what comes out is valid, and a second run changes nothing."""
    graph = gs.import_onnx(model)
    result = step(graph)
    after = export(graph)
    again = gs.import_onnx(after)
    assert step(again).changed == ()
    assert export(again).SerializeToString() == after.SerializeToString()
    return result, after


def export(graph: gs.Graph) -> onnx.ModelProto:
    model: onnx.ModelProto = gs.export_onnx(graph.cleanup().toposort())
    model.ir_version = 10
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def outputs(model: onnx.ModelProto, x: NDArray[np.float32]) -> list[NDArray[Any]]:
    names = [value.name for value in model.graph.output]
    return run(open_unoptimized(model.SerializeToString(), Path()), {"x": x}, names)


def assert_same_bits(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Tolerance none: both graphs are run node by node, and a pass may not change one bit of any output."""
    x = np.random.default_rng(1).normal(0, 4, (50, WIDTH)).astype(np.float32)  # beyond 127 steps of 0.05, so it clips
    assert [value.name for value in before.graph.output] == [value.name for value in after.graph.output]
    for expected, result in zip(outputs(before, x), outputs(after, x), strict=True):
        np.testing.assert_array_equal(expected, result)


def count(model: onnx.ModelProto, op: str) -> int:
    return sum(node.op_type == op for node in model.graph.node)


# --- share_quantizers -----------------------------------------------------------------------------------------------


def test_q_k_and_v_read_one_quantizer() -> None:
    before = projections(0.05, 0.05, 0.05)
    result, after = apply(share_quantizers, before)
    assert result.changed == tuple(
        f"{SELF}.{name}.input_quantizer.{half}" for name in ("key", "value") for half in ("quantize", "dequantize")
    )
    assert result.declined == ()
    assert (count(after, "QuantizeLinear"), count(after, "DequantizeLinear")) == (1, 1 + 3)
    readers = [node.name for node in after.graph.node if f"{SELF}.query.input_quantizer.dequantize" in node.input]
    assert readers == [f"{SELF}.{name}.MatMul" for name in ("query", "key", "value")]
    assert_same_bits(before, after)


def test_another_scale_is_declined_by_name_and_the_rest_shared() -> None:
    before = projections(0.05, 0.04, 0.05)
    result, after = apply(share_quantizers, before)
    assert result.changed[0] == f"{SELF}.value.input_quantizer.quantize"
    assert [(item.name, item.reason) for item in result.declined] == [
        (
            f"{SELF}.key.input_quantizer.quantize",
            f"same tensor as {SELF}.query.input_quantizer.quantize, but another scale",
        )
    ]
    assert count(after, "QuantizeLinear") == 2
    assert_same_bits(before, after)


def test_scales_one_bit_apart_are_different() -> None:
    near = float(np.nextafter(np.float32(0.05), np.float32(1)))
    result, _ = apply(share_quantizers, projections(0.05, near, 0.04))
    assert not result.modified
    assert len(result.declined) == 2


def test_different_tensors_with_one_scale_stay_apart() -> None:
    small = Small()
    for name, tensor in (("a", "x"), ("b", small.node("Relu", ["x"], "relu"))):
        small.output(small.pair(tensor, name))
    result, _ = apply(share_quantizers, small.model())
    assert result == PassResult()


def test_weights_are_left_alone() -> None:
    """Two linears of one weight (a shared layer) keep a DequantizeLinear each, as every runtime fuses them."""
    small = Small()
    shared = small.pair("x", "point")
    first = small.linear(shared, "query", 0)
    point = f"{SELF}.query.weight_quantizer"
    second = small.node(
        "DequantizeLinear", [f"{point}.{part}" for part in ("codes", "scale", "zero_point")], "again", axis=1
    )
    small.output(small.node("MatMul", [shared, second], f"{first}_1"))
    result, after = apply(share_quantizers, small.model())
    assert result == PassResult()
    assert count(after, "DequantizeLinear") == 3


def test_an_output_of_the_graph_keeps_its_name() -> None:
    small = Small()
    small.linear(small.pair("x", "a"), "query", 0)
    small.output(small.pair("x", "b"))
    before = small.model()
    result, after = apply(share_quantizers, before)
    assert result.changed == ("b.quantize",)
    assert [(item.name, item.reason) for item in result.declined] == [
        ("b.dequantize", "same as a.dequantize, but its output is one of the graph's")
    ]
    assert_same_bits(before, after)


@pytest.mark.parametrize("index", [1, 2], ids=["scale", "zero-point"])
def test_a_scale_computed_at_run_time_names_the_node(index: int) -> None:
    small = Small()
    small.output(small.pair("x", f"{SELF}.query.input_quantizer"))
    name = small.nodes[0].input[index]
    computed = small.node("Identity", [name], "computed")
    small.nodes.insert(0, small.nodes.pop())
    for node in small.nodes[1:]:
        node.input[index] = computed
    with pytest.raises(
        PassError, match=r"query\.input_quantizer\.quantize: its scale or zero-point is computed at run"
    ):
        share_quantizers(gs.import_onnx(small.model()))


# --- recode_unsigned ------------------------------------------------------------------------------------------------


def test_every_activation_becomes_unsigned_and_no_weight() -> None:
    before = projections(0.05, 0.04, 0.03)
    result, after = apply(recode_unsigned, before)
    assert result.changed == tuple(f"{SELF}.{name}.input_quantizer.quantize" for name in ("query", "key", "value"))
    assert result.declined == ()
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    for node in after.graph.node:
        if "input_quantizer" in node.name:
            zero = constants[node.input[2]]
            assert zero.dtype == np.uint8
            assert int(zero) == 128
        elif node.op_type == "DequantizeLinear":
            assert constants[node.input[0]].dtype == constants[node.input[2]].dtype == np.int8
    assert not [name for name in constants if name.endswith("input_quantizer.zero_point")]
    assert_same_bits(before, after)


def test_float_weights_behind_a_pair_stay_signed() -> None:
    """The FP32-weights form of the canonical graph: per-channel Q and DQ on an initializer."""
    small = Small()
    weight = small.constant("weight", np.random.default_rng(0).normal(0, 0.1, (WIDTH, WIDTH)).astype(np.float32))
    scale, zero = (
        small.constant(f"w.{name}", np.full(WIDTH, value))
        for name, value in (("scale", np.float32(2e-3)), ("zero_point", np.int8(0)))
    )
    codes = small.node("QuantizeLinear", [weight, scale, zero], "w.quantize", axis=1)
    quantized = small.dequantize(codes, "w", axis=1)
    small.output(small.node("MatMul", [small.pair("x", "point"), quantized], f"{SELF}.MatMul"))
    before = small.model()
    result, after = apply(recode_unsigned, before)
    assert result == PassResult(("point.quantize",))
    assert_same_bits(before, after)


def shifted(small: Small) -> None:
    small.output(small.dequantize(small.quantize("x", "point", zero=3), "point"))


def stranger(small: Small) -> None:
    codes = small.quantize("x", "point")
    small.output(small.dequantize(codes, "point"))
    small.output(small.node("Transpose", [small.node("Transpose", [codes], "turn")], "back"), TensorProto.INT8)


def given_away(small: Small) -> None:
    small.output(small.dequantize(small.output(small.quantize("x", "point"), TensorProto.INT8), "point"))


def otherwise_read(small: Small) -> None:
    codes = small.quantize("x", "point")
    names = [small.constant("s", np.float32(0.05)), small.constant("z", np.int8(3))]
    small.output(small.node("DequantizeLinear", [codes, *names], "odd"))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (shifted, "its zero-point is not 0"),
        (stranger, "its codes are read by turn, not only dequantized"),
        (given_away, "its codes are an output of the graph"),
        (otherwise_read, "odd dequantizes with another zero-point"),
    ],
)
def test_what_cannot_be_recoded_is_declined_with_the_reason(build: Callable[[Small], None], reason: str) -> None:
    small = Small()
    build(small)
    before = small.model()
    result, after = apply(recode_unsigned, before)
    assert not result.modified
    assert [(item.name, item.reason) for item in result.declined] == [("point.quantize", reason)]
    assert result.as_json()["declined"] == [{"name": "point.quantize", "reason": reason}]
    assert_same_bits(before, after)


def test_a_quantizer_without_zero_point_is_unsigned_already() -> None:
    small = Small()
    scale = small.constant("scale", np.float32(0.05))
    codes = small.node("QuantizeLinear", ["x", scale], "quantize")
    small.output(small.node("DequantizeLinear", [codes, scale], "dequantize"))
    assert apply(recode_unsigned, small.model())[0] == PassResult()
    assert apply(share_quantizers, small.model())[0] == PassResult()


CODES = np.arange(-128, 128, dtype=np.float32)
# Every code, every rounding border between two codes, both sides of saturation.
STEPS = np.concatenate([CODES, CODES + 0.5, CODES - 0.25, [-1e9, -129, -128.5, 127.5, 128, 300, 1e9, 0.0]])


@settings(max_examples=25, deadline=None)
@given(
    scale=st.floats(2.0**-24, 2.0**10, width=32),
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=8),
)
def test_dequantized_values_are_the_same_for_all_codes(scale: float, values: list[float]) -> None:
    small = Small()
    small.output(small.pair("x", "point", scale))
    before = small.model()
    after = apply(recode_unsigned, before)[1]
    x = np.concatenate([STEPS.astype(np.float32) * np.float32(scale), np.array(values, np.float32)])
    x = np.resize(x, (-(-x.size // WIDTH), WIDTH))
    (signed,), (unsigned,) = outputs(before, x), outputs(after, x)
    np.testing.assert_array_equal(signed, unsigned)
    assert set(np.unique(signed)) == set(CODES * np.float32(scale))


# --- order ----------------------------------------------------------------------------------------------------------


def test_every_target_has_its_passes_in_order() -> None:
    names = {target: [step.name for step in passes_for(target)] for target in ("openvino", "onnxruntime", "tensorrt")}
    assert all("share_quantizers" in steps for steps in names.values())
    # Last, because the passes before it know the canonical s8 coding; nowhere else, because it is slower or refused.
    assert names["onnxruntime"][-1] == "recode_unsigned"
    assert "recode_unsigned" not in names["openvino"] + names["tensorrt"]
    assert all(step.why for target in names for step in passes_for(target))


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"target: unknown value 'tensortr'; did you mean 'tensorrt'\?"):
        passes_for("tensortr")
