"""The strongly typed TensorRT graph: what is half precision, what stays FP32 and why, and that the numbers hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from export.inventory import LAYOUT, inventory
from export.node_by_node import NodeByNode, node_errors
from export.passes import LowerOptions, float_variant, lower
from export.passes.base import PassResult, load_graph
from export.passes.element_types import check_strong_types, element_types
from export.passes.half_body import half_body
from export.ranges import measure_ranges
from export.reading import type_name
from qdq.errors import ConfigError, PassError
from qdq.inject.attention import MASKED_SCORE

FP16_ULPS = 4  # per node on identical inputs
LAYER = "bert.encoder.layer.0."


def feeds(tiny: Any, seed: int = 5) -> dict[str, np.ndarray]:
    return {name: value.astype(np.int32) for name, value in tiny.feeds(3, 10, seed).items()}


def unoptimized(path: Path, batch: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    result: np.ndarray = ort.InferenceSession(path, options).run(None, batch)[0]
    return result


@pytest.fixture(scope="module")
def ranges(tiny: Any, canonical: Path) -> dict[str, float]:
    return measure_ranges(canonical, [tiny.feeds(4, 12, seed) for seed in range(2)])


@pytest.fixture(scope="module")
def bodies(canonical: Path, ranges: dict[str, float], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The lowered graph with every body."""
    made = {}
    for body in ("fp16", "bf16", "fp32"):
        folder = tmp_path_factory.mktemp(body)
        lower(canonical, "tensorrt", folder, options=LowerOptions(body, ranges))
        made[body] = folder / "model.onnx"
    return made


def kinds(path: Path) -> Counter[str]:
    """How many tensors of each float type."""
    graph = load_graph(path)
    found = Counter(type_name(element) for element in element_types(graph).values())
    return Counter({name: count for name, count in found.items() if "FLOAT" in name})


def finish(graph: gs.Graph, body: Any = "fp16", ranges: dict[str, float] | None = None) -> PassResult:
    """Run the pass as the pipeline does, and prove the result."""
    result = half_body(graph, body, ranges)
    graph.cleanup().toposort()
    check_strong_types(graph)
    return result


def reasons(result: PassResult) -> dict[str, str]:
    return {item.name: item.reason for item in result.declined}


def declined_by_half_body(report: Mapping[str, Any]) -> list[dict[str, str]]:
    (step,) = (step for step in report["passes"] if step["pass"] == "half_body")
    declined: list[dict[str, str]] = step["declined"]
    return declined


def node(graph: gs.Graph, name: str) -> gs.Node:
    return next(node for node in graph.nodes if node.name == name)


def mask_constant(graph: onnx.GraphProto) -> TensorProto:
    """The scalar that erases attention scores."""
    scalars = [tensor for tensor in graph.initializer if not tensor.dims]
    mask: TensorProto
    (mask,) = (tensor for tensor in scalars if float(numpy_helper.to_array(tensor)) == MASKED_SCORE)
    return mask


def test_only_the_output_stays_fp32(bodies: dict[str, Path]) -> None:
    assert kinds(bodies["fp16"]).keys() == {"FLOAT16", "FLOAT"}
    assert kinds(bodies["fp16"])["FLOAT"] == 1  # the logits
    assert kinds(bodies["bf16"]).keys() == {"BFLOAT16", "FLOAT"}
    assert kinds(bodies["bf16"])["FLOAT"] == 1
    assert kinds(bodies["fp32"]).keys() == {"FLOAT"}
    for path in bodies.values():
        onnx.checker.check_model(str(path), full_check=True)
        (output,) = onnx.load(path).graph.output
        assert (output.name, output.type.tensor_type.elem_type) == ("logits", TensorProto.FLOAT)


@pytest.mark.parametrize("body", ["fp16", "bf16"])
def test_every_matmul_is_fed_by_its_dequantizers_without_a_cast(bodies: dict[str, Path], body: str) -> None:
    graph, found = load_graph(bodies[body]), inventory(onnx.load(bodies[body]))
    multiplications = (*found.encoder_linear, *found.attention_matmul)
    assert len(multiplications) == 2 * 8
    for name in (found.computed_in.get(name, name) for name in multiplications):
        for tensor in node(graph, name).inputs:
            while tensor.inputs and tensor.inputs[0].op in LAYOUT:
                assert tensor.inputs[0].op != "Cast"
                tensor = tensor.inputs[0].inputs[0]
            assert tensor.inputs[0].op == "DequantizeLinear"
    casts = {n.name: n for n in graph.nodes if n.op == "Cast"}
    floats = [name for name, cast in casts.items() if cast.inputs[0].inputs and not name.startswith("bert.Cast")]
    assert floats == [f"logits.{body}.fp32"]  # the others make numbers of the attention mask


def test_query_key_and_value_read_one_quantizer_before_and_after_softmax(bodies: dict[str, Path]) -> None:
    graph = load_graph(bodies["fp16"])
    product = node(graph, f"{LAYER}attention.self.query_and_key_and_value.MatMul")
    assert [tensor.inputs[0].op for tensor in product.inputs] == ["DequantizeLinear"] * 2
    softmax = node(graph, f"{LAYER}attention.self.Softmax")
    assert [reader.op for reader in softmax.outputs[0].outputs] == ["QuantizeLinear"]
    after = node(graph, f"{LAYER}attention.output.dense.MatMul").inputs[0].inputs[0].inputs[0].inputs[0]
    assert after.op == "QuantizeLinear"  # behind the second attention matmul


def test_scales_are_exact_and_layer_normalization_sums_in_fp32(canonical: Path, bodies: dict[str, Path]) -> None:
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(canonical).graph.initializer}
    after = onnx.load(bodies["fp16"]).graph
    scales = [tensor for tensor in after.initializer if tensor.name.endswith("input_quantizer.scale")]
    assert len(scales) == 20
    for tensor in scales:
        assert tensor.data_type == TensorProto.FLOAT16
        assert np.array_equal(numpy_helper.to_array(tensor).astype(np.float32), before[tensor.name])
    norms = [n for n in after.node if n.op_type == "LayerNormalization"]
    assert [next(a.i for a in n.attribute if a.name == "stash_type") for n in norms] == [1] * 5
    assert MASKED_SCORE == -1.0e4  # fits FP16: nothing was clamped
    assert float(numpy_helper.to_array(mask_constant(after))) == MASKED_SCORE
    assert mask_constant(after).data_type == TensorProto.FLOAT16


def test_every_node_is_within_four_ulp_and_nothing_overflows(tiny: Any, bodies: dict[str, Path]) -> None:
    errors = node_errors(bodies["fp16"], feeds(tiny))
    assert {error.op for error in errors} >= {"MatMul", "Softmax", "LayerNormalization", "Gelu", "Add", "Gemm", "Tanh"}
    worst = max(errors, key=lambda error: error.ulp)
    assert worst.ulp <= FP16_ULPS, worst
    assert max(error.largest for error in errors) < 65504 / 2


def test_the_answers_are_those_of_the_fp32_body(tiny: Any, bodies: dict[str, Path]) -> None:
    batch = feeds(tiny)
    expected = unoptimized(bodies["fp32"], batch)
    for actual in (unoptimized(bodies["fp16"], batch), NodeByNode(bodies["fp16"])(batch)["logits"]):
        assert actual.dtype == np.float32
        # An activation near a rounding tie takes the neighbouring INT8 code: a few of them move the logits this much.
        assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()
        assert np.array_equal(actual.argmax(1), expected.argmax(1))


def test_a_second_run_changes_nothing_and_bytes_are_stable(
    canonical: Path, ranges: dict[str, float], bodies: dict[str, Path], tmp_path: Path
) -> None:
    lower(canonical, "tensorrt", tmp_path, options=LowerOptions("fp16", ranges))
    assert (tmp_path / "model.onnx").read_bytes() == bodies["fp16"].read_bytes()
    report = lower(bodies["fp16"], "tensorrt", tmp_path / "again", options=LowerOptions("fp16", ranges))
    assert not any(step["modified"] for step in report["passes"])
    assert (tmp_path / "again" / "model.onnx").read_bytes() == bodies["fp16"].read_bytes()


def test_bf16_rounds_its_scales_and_says_so(canonical: Path, ranges: dict[str, float], bodies: dict[str, Path]) -> None:
    declined = reasons(finish(load_graph(canonical), "bf16", ranges))
    assert declined == {"scales": declined["scales"]}
    assert declined["scales"].startswith("rounded to BF16, by at most 0.")
    scale = next(t for t in onnx.load(bodies["bf16"]).graph.initializer if t.name.endswith("weight_quantizer.scale"))
    assert scale.data_type == TensorProto.BFLOAT16


def test_without_ranges_it_says_that_overflow_is_not_ruled_out(canonical: Path) -> None:
    assert reasons(finish(load_graph(canonical))) == {
        "ranges": "not measured; that no tensor exceeds FP16 is not proved"
    }
    listed = reasons(finish(load_graph(canonical), ranges={"bert.pooler.Gather": 1.0}))
    assert "were not measured and may overflow" in listed["ranges"]


def test_a_tensor_beyond_half_of_fp16_keeps_its_maker_and_reader_in_fp32(
    tiny: Any, canonical: Path, ranges: dict[str, float], bodies: dict[str, Path], tmp_path: Path
) -> None:
    add, norm = f"{LAYER}output.Add", f"{LAYER}output.LayerNorm.LayerNormalization"
    large = LowerOptions("fp16", ranges | {add: 40000.0})
    report = lower(canonical, "tensorrt", tmp_path, options=large)
    listed = {item["name"]: item["reason"] for item in declined_by_half_body(report)}
    assert listed.keys() == {add, norm}
    assert listed[add] == (
        "stays FP32: its result reached 4e+04 on the measured data; FP16 holds 65504, less a margin of two"
    )
    graph = load_graph(tmp_path / "model.onnx")
    types = element_types(graph)
    assert [type_name(types[tensor.name]) for tensor in node(graph, norm).inputs] == ["FLOAT"] * 3
    for tensor in node(graph, add).inputs:  # quantized residual operands: their DQ makes FP32, no Cast
        assert tensor.inputs[0].op == "DequantizeLinear"
        assert types[tensor.name] == TensorProto.FLOAT
    for reader in node(graph, norm).outputs[0].outputs:  # a Q reads FP32 as it is, the last block's row is FP16
        assert reader.op in ("QuantizeLinear", "Cast")
    batch = feeds(tiny)
    assert np.allclose(unoptimized(tmp_path / "model.onnx", batch), unoptimized(bodies["fp16"], batch), atol=0.05)
    again = lower(tmp_path / "model.onnx", "tensorrt", tmp_path / "again", options=large)
    assert not any(step["modified"] for step in again["passes"])


def test_large_scores_take_the_dequantizers_and_the_transpose_with_them(
    canonical: Path, ranges: dict[str, float]
) -> None:
    matmul = f"{LAYER}attention.self.MatMul"
    graph = load_graph(canonical)
    declined = reasons(finish(graph, ranges=ranges | {matmul: 60000.0}))
    transpose = node(graph, matmul).inputs[1].inputs[0].name
    assert declined[transpose] == f"stays FP32: carries an operand of {matmul}"
    assert set(declined) == {matmul, transpose, f"{LAYER}attention.self.Add"}
    types = element_types(graph)
    assert {type_name(types[tensor.name]) for tensor in node(graph, matmul).inputs} == {"FLOAT"}


def test_a_dequantizer_read_in_two_types_becomes_two(canonical: Path, ranges: dict[str, float]) -> None:
    """Layer 1's q, k and v share one DQ; only the query's product is large."""
    query, key = (f"bert.encoder.layer.1.attention.self.{part}.MatMul" for part in ("query", "key"))
    graph = load_graph(canonical)
    shared = node(graph, query).inputs[0].name
    assert node(graph, key).inputs[0].name == shared
    finish(graph, ranges=ranges | {query: 50000.0})
    assert node(graph, key).inputs[0].name == shared
    twin = node(graph, query).inputs[0]
    assert twin.name == f"{shared}.fp32"
    assert twin.inputs[0].inputs[0] is node(graph, key).inputs[0].inputs[0].inputs[0]  # the same codes


def test_a_tensor_of_subnormal_values_stays_fp32(canonical: Path, ranges: dict[str, float]) -> None:
    declined = reasons(finish(load_graph(canonical), ranges=ranges | {"bert.pooler.Gather": 1e-6}))
    assert declined["bert.pooler.Gather"].startswith("stays FP32: its result never exceeded 1e-06")


def test_a_mask_beyond_fp16_is_clamped_and_its_range_is_not_taken_for_an_activation(
    tiny: Any, canonical: Path, bodies: dict[str, Path], tmp_path: Path
) -> None:
    model = onnx.load(canonical)
    mask = mask_constant(model.graph)
    mask.CopyFrom(numpy_helper.from_array(np.array(np.finfo(np.float32).min), mask.name))
    onnx.save(model, tmp_path / "masked.onnx")
    measured = measure_ranges(tmp_path / "masked.onnx", [tiny.feeds(4, 12)])
    assert measured[f"{LAYER}attention.self.Add"] > 1e38
    report = lower(tmp_path / "masked.onnx", "tensorrt", tmp_path, options=LowerOptions("fp16", measured))
    (declined,) = declined_by_half_body(report)
    assert declined == {
        "name": mask.name,
        "reason": "-3.403e+38 clamped to -32752, which erases a score as well; FP16 holds 65504",
    }
    batch = feeds(tiny)
    assert np.array_equal(unoptimized(tmp_path / "model.onnx", batch), unoptimized(bodies["fp16"], batch))


def parsed(text: str) -> gs.Graph:
    """A small graph in ONNX's text form; nodes are named after their results."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {text}')
    for item in model.graph.node:
        item.name = item.output[0]
    onnx.checker.check_model(model, full_check=True)
    return gs.import_onnx(model)


def test_a_division_by_a_constant_that_fp16_calls_zero_stays_fp32() -> None:
    """L2 normalization as the pooling head writes it."""
    graph = parsed(
        """g (float[B,8] x, int64[2] shape) => (float[B,8] y) <float least = {1e-12}, int64[1] axes = {-1}> {
            half = Tanh(x)
            norm = ReduceL2(half, axes)
            length = Clip(norm, least)
            wide = Expand(length, shape)
            y = Div(half, wide)
        }"""
    )
    declined = reasons(finish(graph, ranges=dict.fromkeys(("half", "norm", "length", "wide", "y"), 1.0)))
    assert declined == {
        "norm": "stays FP32: ReduceL2 is computed through squares, which become FP16 tensors of their own",
        "length": "stays FP32: 'least' is 1e-12, which is zero in FP16",
        "wide": "stays FP32: its result may be as small as 'least' is 1e-12, which is zero in FP16",
        "y": "stays FP32: its operand 'wide' may be as small as 'least' is 1e-12, which is zero in FP16",
    }
    assert [n.name for n in graph.nodes if n.op == "Cast"] == [
        "x.fp16",
        "half.fp32",
    ]  # one for both readers, none behind


def test_what_counts_stays_fp32() -> None:
    """Relative position buckets: 2047 + 2 is 2048 in FP16, another bucket."""
    graph = parsed(
        """g (int64[B] positions, float[4096] x) => (float[B] y) <float two = {2.0}> {
            numbers = Cast<to = 1>(positions)
            shifted = Add(numbers, two)
            buckets = Cast<to = 7>(shifted)
            bias = Tanh(x)
            y = Gather(bias, buckets)
        }"""
    )
    declined = reasons(finish(graph, ranges=dict.fromkeys(("numbers", "shifted", "bias", "y"), 1.0)))
    why = "stays FP32: its result becomes an integer, which FP16 could round to another"
    assert declined == {"numbers": why, "shifted": why}


def test_a_weight_beyond_fp16_keeps_its_node_in_fp32() -> None:
    graph = parsed(
        """g (float[B,2] x) => (float[B,2] y) <float[2] w = {1.0, 1e6}, float huge = {1e6}> {
            a = Tanh(x)
            b = Mul(a, w)
            y = Div(b, huge)
        }"""
    )
    declined = reasons(finish(graph, ranges={"a": 1.0, "b": 10.0, "y": 1.0}))
    assert declined["b"] == "stays FP32: its constant 'w' reaches 1e+06; FP16 holds 65504"
    assert declined["y"] == "stays FP32: its constant 'huge' reaches 1e+06; FP16 holds 65504"  # no mask: not clamped


def test_shapes_are_read_from_either_type_and_filled_constants_follow() -> None:
    graph = parsed(
        """g (float[B,2] x) => (float[B,2] y) {
            big = Add(x, x)
            shape = Shape(big)
            ones = ConstantOfShape<value = float[1] {1.0}>(shape)
            small = Tanh(big)
            y = Add(small, ones)
        }"""
    )
    finish(graph, ranges={"big": 60000.0, "small": 1.0, "y": 2.0})
    types = element_types(graph)
    assert types["ones"] == TensorProto.FLOAT16
    assert node(graph, "shape").inputs[0].name == "big"
    assert sorted(n.name for n in graph.nodes if n.op == "Cast") == ["small.fp16", "y.fp16.fp32"]


def test_a_scale_that_fp16_cannot_hold_is_an_error() -> None:
    graph = parsed(
        """g (float[B,2] x) => (float[B,2] y) <float s = {0.1}, int8 z = {0}> {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            y = Tanh(d)
        }"""
    )
    with pytest.raises(PassError, match=r"d: its scale is not an FP16 value .* export again"):
        half_body(graph)


def test_an_unknown_body_names_the_nearest(canonical: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp16"):
        lower(canonical, "tensorrt", tmp_path, options=LowerOptions("fp61"))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_float_variants_hold_no_quantizer_and_agree(tiny: Any, canonical: Path, tmp_path: Path) -> None:
    """From an FP32 export; a canonical graph without its quantizers is one."""
    fp32 = tmp_path / "fp32.onnx"
    graph = load_graph(canonical)
    for item in list(graph.nodes):
        if item.op == "DequantizeLinear" and isinstance(item.inputs[0], gs.Constant):
            codes, scale = item.inputs[0].values.astype(np.float32), item.inputs[1].values
            weight: gs.Tensor = gs.Constant(f"{item.name}.float", codes * scale)
        elif item.op == "DequantizeLinear":
            weight = item.inputs[0].inputs[0].inputs[0]
        else:
            continue
        for reader in list(item.outputs[0].outputs):
            reader.inputs = [weight if tensor is item.outputs[0] else tensor for tensor in reader.inputs]
    onnx.save(gs.export_onnx(graph.cleanup().toposort()), fp32)
    ranges = measure_ranges(fp32, [tiny.feeds(4, 12)])
    outputs = []
    for body in ("fp16", "fp32"):
        report = float_variant(fp32, body, tmp_path / body, ranges)
        assert [step["pass"] for step in report["passes"]] == [
            "needed_rows",
            "half_body",
            "narrow_inputs",
            "strong_types",
        ]
        assert not any(step["declined"] for step in report["passes"])
        assert "QuantizeLinear" not in {n.op for n in load_graph(tmp_path / body / "model.onnx").nodes}
        outputs.append(unoptimized(tmp_path / body / "model.onnx", feeds(tiny)))
    assert kinds(tmp_path / "fp16" / "model.onnx")["FLOAT"] == 1
    assert np.allclose(
        outputs[0], outputs[1], atol=0.01
    )  # logits of size 1 through two layers of FP16 rounding (2**-11)
