"""One scale per weight and the ratios behind the product: the same arithmetic, exact ratios, sums that fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.passes import lower
from export.passes.base import load_graph
from export.passes.quantized_linears import quantized_linear
from export.passes.weight_ratios import LARGEST_CODE, Range, common_scale, weight_ratios

from .linears import SELF, STEP, Linears, applied, inputs, random_codes, results, values

K, N = 12, 8
SCALES = np.linspace(1e-3, 2e-3, N).astype(np.float16)
FP16 = np.finfo(np.float16)


def one(scales: Any = SCALES, codes: Any = None, dtype: Any = np.float32, bias: Any = None) -> onnx.ModelProto:
    """A single linear `up` of quantized x."""
    graph = Linears(K, dtype)
    x = graph.pair("x", "up.input_quantizer")
    return graph.model(graph.linear(x, "up", random_codes(1, K, N) if codes is None else codes, scales, bias))


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.op_type not in ("QuantizeLinear", "DequantizeLinear")]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_scales_of_the_channels_become_one_and_their_ratios(dtype: Any) -> None:
    before = one(dtype=dtype, bias=np.linspace(-1, 1, N))
    result, after = applied(weight_ratios, before)
    assert result.changed == ("up.MatMul",) and not result.declined
    assert ops(after) == ["MatMul", "Mul", "Add"]
    found, original = values(after), values(before)
    assert found["up.weight_quantizer.scale"].shape == found["up.weight_quantizer.zero_point"].shape == ()
    assert float(found["up.weight_quantizer.scale"]) == 2.0**-8  # the largest scale, 0.002, rounded up
    np.testing.assert_array_equal(found["up.weight_quantizer.codes"], original["up.weight_quantizer.codes"])
    back = found["up.weight_quantizer.scale"].astype(float) * found["up.weight_quantizer.ratio"].astype(float)
    np.testing.assert_array_equal(back, original["up.weight_quantizer.scale"].astype(float))
    assert found["up.weight_quantizer.ratio"].dtype == dtype
    (ratio,) = (node for node in after.graph.node if node.name == "up.Ratio")
    assert list(ratio.output) == ["up.MatMul"]  # what is behind the product reads what it read
    x = inputs(K, dtype=dtype)
    tolerance = 1e-6 if dtype == np.float32 else 4e-3  # two FP16 roundings instead of one, of results up to 8
    np.testing.assert_allclose(results(after, x)[0], results(before, x)[0], rtol=0, atol=tolerance)


def test_linears_of_one_tensor_share_the_scale_and_others_have_their_own() -> None:
    graph = Linears(K)
    x = graph.pair("x", f"{SELF}.query.input_quantizer")
    projections = {"query": 1.0, "key": 4.0, "value": 0.5}
    made = [graph.linear(x, f"{SELF}.{name}", random_codes(1, K, N), SCALES * f) for name, f in projections.items()]
    other = graph.linear(graph.pair("x", "up.input_quantizer", 0.03), "up", random_codes(2, K, N), SCALES)
    result, after = applied(weight_ratios, graph.model(*made, other))
    assert len(result.changed) == 4
    found = values(after)
    assert {float(found[f"{SELF}.{name}.weight_quantizer.scale"]) for name in projections} == {2.0**-6}
    assert float(found["up.weight_quantizer.scale"]) == 2.0**-8


def test_a_weight_that_several_layers_read_is_changed_once() -> None:
    """ALBERT's: one DequantizeLinear, inputs of other scales."""
    graph = Linears(K)
    weight = graph.weight("ffn", random_codes(1, K, N), SCALES)
    made = []
    for layer, step in (("", 0.05), ("_1", 0.5)):
        x = graph.pair("x", f"ffn.input_quantizer{layer}", step)
        made.append(graph.node("MatMul", [x, weight], f"ffn.MatMul{layer}"))
    before = graph.model(*made)
    result, after = applied(weight_ratios, before)
    assert result.changed == ("ffn.MatMul", "ffn.MatMul_1")
    assert [node.name for node in after.graph.node if node.op_type == "Mul"] == ["ffn.Ratio", "ffn.Ratio_1"]
    assert sum(name.endswith("ratio") for name in values(after)) == 1
    for expected, found in zip(results(before, inputs(K)), results(after, inputs(K)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_gemm_multiplies_before_it_adds_its_bias() -> None:
    graph = Linears(K)
    flat = graph.node("Reshape", ["x", graph.constant("flat", np.array([-1, K], np.int64))], "flat_x")
    x, weight = graph.pair(flat, "pooler.input_quantizer"), graph.weight("pooler", random_codes(1, K, N), SCALES)
    bias = graph.constant("pooler.bias", np.linspace(-1, 1, N).astype(np.float32))
    before = graph.model(graph.node("Gemm", [x, weight, bias], "pooler.Gemm"), rank=2)
    result, after = applied(weight_ratios, before)
    assert result.changed == ("pooler.Gemm",)
    assert [(node.op_type, node.name) for node in after.graph.node][-3:] == [
        ("MatMul", "pooler.Gemm"),
        ("Mul", "pooler.Ratio"),
        ("Add", "pooler.Add"),
    ]
    np.testing.assert_allclose(results(after, inputs(K))[0], results(before, inputs(K))[0], rtol=0, atol=1e-5)


def test_what_has_one_scale_or_a_float_operand_is_left_alone() -> None:
    scalar = one(scales=np.float32(0.001))
    float_input = Linears(K)
    half = float_input.model(float_input.linear("x", "up", random_codes(1, K, N), SCALES))
    float_weight = Linears(K)
    weight = float_weight.constant("w", np.ones((K, N), np.float32))
    whole = float_weight.model(float_weight.node("MatMul", [float_weight.pair("x", "q"), weight], "up.MatMul"))
    transposed = one()
    transposed.graph.node[-1].input[1] = "up.t"
    transposed.graph.node.insert(
        len(transposed.graph.node) - 1,
        onnx.helper.make_node("Transpose", ["up.weight_quantizer.dequantize"], ["up.t"], "up.t", perm=[0, 1]),
    )
    for model in (scalar, half, whole, transposed):
        result, after = applied(weight_ratios, model)
        assert not result.modified
        assert ops(after).count("Mul") == 0


def test_channels_of_zeros_have_no_say_and_the_ratio_one() -> None:
    codes, scales = random_codes(1, K, N), SCALES.copy()
    codes[:, 3], scales[3] = 0, 60000
    result, after = applied(weight_ratios, one(scales, codes, np.float16))
    assert not result.declined
    found = values(after)
    assert float(found["up.weight_quantizer.scale"]) == 2.0**-8
    assert float(found["up.weight_quantizer.ratio"][3]) == 1


def test_the_ratios_of_channels_as_far_apart_as_fp16_goes_are_exact() -> None:
    scales = SCALES.copy()
    scales[2], scales[5] = 2.0**-24, 3.5
    result, after = applied(weight_ratios, one(scales, dtype=np.float16))
    found = values(after)
    assert not result.declined
    assert float(found["up.weight_quantizer.scale"]) == 1  # 4 would make the smallest ratio zero
    np.testing.assert_array_equal(found["up.weight_quantizer.ratio"], scales)


def test_sums_that_could_leave_fp16_lower_the_scale() -> None:
    codes = np.full((K, N), 127, np.int8)
    graph = Linears(K, np.float16)
    before = graph.model(graph.linear(graph.pair("x", "q", 2.0), "up", codes, np.full(N, 0.5)))
    result, after = applied(weight_ratios, before)
    scale = float(values(after)["up.weight_quantizer.scale"])
    assert not result.declined
    reach = 2 * scale * K * 127 * LARGEST_CODE
    assert reach <= float(FP16.max) < 2 * reach
    with_fp32 = Linears(K)
    before = with_fp32.model(with_fp32.linear(with_fp32.pair("x", "q", 2.0), "up", codes, np.full(N, 0.5)))
    assert float(values(applied(weight_ratios, before)[1])["up.weight_quantizer.scale"]) == 0.5


def test_sums_that_overflow_all_the_same_are_said() -> None:
    graph = Linears(K, np.float16)
    wide = graph.model(graph.linear(graph.pair("x", "q", 60000), "up", np.full((K, N), 127, np.int8), np.full(N, 500)))
    (declined,) = applied(weight_ratios, wide)[0].declined
    assert declined.name == "up.MatMul"
    assert declined.reason.startswith("its sums could reach ") and declined.reason.endswith("of at most 65504")


fp16_values = st.integers(1, 0x7BFF).map(lambda bits: float(np.asarray(bits, np.uint16).view(np.float16)))


@settings(max_examples=300, deadline=None)
@given(st.lists(fp16_values, min_size=1, max_size=6), fp16_values, st.integers(1, 4096 * 127), st.booleans())
def test_every_ratio_is_exact_and_sums_fit(scales: list[float], step: float, total: int, half: bool) -> None:
    """Scales as the exporter makes them, FP16 values."""
    dtype = np.dtype(np.float16 if half else np.float32)
    bounds = Range(max(scales), step, total, dtype)
    scale = common_scale([bounds])
    assert float(np.log2(scale)).is_integer() and float(np.asarray(scale, dtype)) == scale
    ratios = (np.asarray(scales) / scale).astype(dtype).astype(float)
    np.testing.assert_array_equal(ratios * scale, scales)
    kind = np.finfo(dtype)
    too_small = max(scales) / (scale / 2) > float(kind.max) or scale == float(kind.smallest_subnormal)
    assert bounds.sums(scale) <= float(kind.max) or too_small


def test_the_pass_finds_only_plain_linears() -> None:
    graph = gs.import_onnx(one())
    (product,) = (node for node in graph.nodes if node.op == "MatMul")
    linear = quantized_linear(product)
    assert linear is not None
    assert (linear.codes.shape, linear.scales.shape, linear.input_scale) == ((K, N), (N,), STEP)
    zero = linear.weight.inputs[2]
    linear.weight.inputs[2] = gs.Constant("another", np.ones(N, np.int8))
    assert quantized_linear(product) is None
    linear.weight.inputs[2] = zero
    linear.weight.attrs["axis"] = 0
    assert quantized_linear(product) is None


def test_no_product_of_a_lowered_graph_can_leave_fp16(canonical: Path, tmp_path: Path) -> None:
    """Of any text: the largest codes of the input against the weights' own. Raw sums of a MiniLM reach 290,000."""
    lower(canonical, "tensorrt", tmp_path)
    graph = load_graph(tmp_path / "model.onnx")
    found = [linear for node in graph.nodes if (linear := quantized_linear(node)) is not None]
    assert len(found) == 9
    for linear in found:
        sums = np.abs(linear.codes.astype(int)).sum(axis=0).max() * LARGEST_CODE
        assert linear.input_scale is not None and linear.scales.shape == ()
        assert sums * linear.input_scale * float(linear.scales) < 65504
