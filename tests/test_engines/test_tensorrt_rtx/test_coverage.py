"""INT8 as the compiler has built it, for linears and attentions of graphs that differ in one thing each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.tensorrt_rtx import Compiler, Coverage, Shapes, coverage
from qdq.errors import BuildError

from .. import conftest
from .conftest import SHAPE, WriteHalf

SOFTMAX = "encoder.layer.0.attention.self.Softmax"
CAPABILITIES = [75, 89]
Cover = Callable[..., Coverage]


@pytest.fixture
def cover(compiler: Compiler) -> Cover:
    def compiled(model: Path, capability: int = 75) -> Coverage:
        return coverage(compiler.compile(model, (capability,), SHAPE), model)

    return compiled


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_scales_per_channel_are_no_fp32_numbers(cover: Cover, write_half: WriteHalf, capability: int) -> None:
    found = cover(write_half(), capability)
    assert found.int8_linears == (6, 6)
    assert found.int8_attentions == (1, 1)
    assert found.fp32_scales == (0, 6)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_one_scale_per_weight_is(cover: Cover, write_half: WriteHalf, capability: int) -> None:
    found = cover(write_half(per_tensor=True), capability)
    assert found.int8_linears == (6, 6)
    assert found.fp32_scales == (6, 6)
    assert list(found.scales_in_fp32) == list(found.linears)


def test_another_scale_in_the_plan_is_not_the_graphs(compiler: Compiler, write_half: WriteHalf) -> None:
    """Scales of other linears, which are numbers of the same plan, do not count either."""
    model = write_half(per_tensor=True)
    compiled = compiler.compile(model, (75,), SHAPE)
    for factor, right in ((1 + 1e-8, 6), (1 + 1e-5, 0), (2.0, 0)):
        gemms = tuple(replace(gemm, alpha=(gemm.alpha or 0) * factor) for gemm in compiled.gemms)
        assert coverage(replace(compiled, gemms=gemms), model).fp32_scales == (right, 6)
    one, *rest = compiled.gemms
    swapped = replace(compiled, gemms=(replace(one, alpha=None), *rest))
    assert coverage(swapped, model).fp32_scales == (3, 6)  # q, k and v are one product


def test_fp32_bodies_keep_every_scale(cover: Cover, write_encoder: Callable[..., Path]) -> None:
    found = cover(write_encoder(), 89)
    assert found.int8_linears == (6, 6)
    assert found.fp32_scales == (6, 6)


def test_a_result_that_is_quantized_in_the_gemm(cover: Cover, tmp_path: Path) -> None:
    """Its scale divides the GEMM's, whose own would otherwise be sought in vain."""
    path = tmp_path / "model.onnx"
    constants = {
        "s": np.float16(0.03),
        "t": np.float16(0.11),
        "w": np.float16(0.0017),
        "z": np.int8(0),
        "c": np.random.default_rng(0).integers(-127, 128, (64, 64)).astype(np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "d"),
        helper.make_node("DequantizeLinear", ["c", "w", "z"], ["v"], "v"),
        helper.make_node("MatMul", ["d", "v"], ["first"], "first"),
        helper.make_node("QuantizeLinear", ["first", "t", "z"], ["p"], "p"),
        helper.make_node("DequantizeLinear", ["p", "t", "z"], ["e"], "e"),
        helper.make_node("MatMul", ["e", "v"], ["y"], "second"),
    ]
    shape = ["batch", "sequence", 64]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name in "xy"]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    found = cover(path)
    assert found.linears == {"first": "int8", "second": "int8"}  # no node is named after a layer: all count
    assert found.fp32_scales == (2, 2)


def test_attention_says_why_it_is_not_int8(cover: Cover, write_half: WriteHalf) -> None:
    assert cover(write_half(operands=())).attentions == {SOFTMAX: "fused, but reads fp16"}
    partly = cover(write_half(operands=("q", "k")))
    assert partly.attentions == {
        SOFTMAX: "not fused: the scores go through memory, products int8 x int8 and fp16 x fp16"
    }
    assert partly.int8_attentions == (0, 1)


def test_fused_attention_must_multiply_int8(compiler: Compiler, write_half: WriteHalf) -> None:
    """Types that it reads do not say what it computes with; the source of its kernel does."""
    model = write_half()
    compiled = compiler.compile(model, (75,), SHAPE)
    (attention,) = [kernel for kernel in compiled.kernels if kernel.kind == "attention"]
    assert attention.instructions == ("Turing_imma_int8_int32_traits",) * 2
    for instructions, reason in (
        (("Turing_imma_int8_int32_traits", "Turing_hmma_fp16_traits"), "Turing_hmma_fp16_traits"),
        ((), "unknown instructions"),
    ):
        other = replace(attention, instructions=instructions)
        kernels = tuple(other if kernel == attention else kernel for kernel in compiled.kernels)
        found = coverage(replace(compiled, kernels=kernels), model)
        assert found.int8_attentions == (0, 1)
        assert found.attentions[SOFTMAX].endswith(reason)


def test_the_other_template_of_fused_attention(
    compiler: Compiler, write_half: WriteHalf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads of 64 over 512 tokens on Turing get another kernel, and with open sizes none."""
    monkeypatch.setattr(conftest, "HEADS", 1)
    model = write_half()
    compiled = compiler.compile(model, (75,), Shapes.fixed(2, 512))
    (attention,) = [kernel for kernel in compiled.kernels if kernel.kind == "attention"]
    assert attention.instructions == ("Turing_imma_int8_int32_traits",) * 2
    assert coverage(compiled, model).int8_attentions == (1, 1)
    open_sizes = compiler.compile(model, (75,), Shapes.between((1, 1), (2, 128), (2, 512)))
    assert coverage(open_sizes, model).attentions[SOFTMAX].startswith("not fused")


def test_linears_say_why_they_are_not_int8(cover: Cover, write_half: WriteHalf) -> None:
    found = cover(write_half(float_inputs=("output.dense",)))
    name = "encoder.layer.0.output.dense.MatMul"
    assert found.linears[name] == "activation float in the graph: fp16 x fp16"
    assert found.int8_linears == (5, 6)
    assert name not in found.scales_in_fp32


def test_weights_that_the_engine_dequantizes(cover: Cover, write_half: WriteHalf) -> None:
    """A scale per row of the weight cannot leave the sum; the graph is quantized, the product is not."""
    path = write_half()
    model = onnx.load(path)
    name = "encoder.layer.0.attention.output.dense"
    point = next(node for node in model.graph.node if node.name == f"{name}.weight_quantizer.dequantize")
    point.attribute[0].i = 0
    onnx.save(model, path)
    found = cover(path)
    assert found.linears[f"{name}.MatMul"] == "quantized in the graph, but the plan multiplies fp16 x fp16"
    assert found.int8_linears == (5, 6)


def test_a_linear_without_a_matrix_product(compiler: Compiler, tmp_path: Path) -> None:
    """One float row times a matrix is no GEMM."""
    path = tmp_path / "model.onnx"
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "layer.0.linear")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["batch", "sequence", 64]) for name in "xy"]
    weight = numpy_helper.from_array(np.ones((64, 64), np.float16), "w")
    graph = helper.make_graph([node], "g", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    compiled = compiler.compile(path, (75,), Shapes.fixed(1, 1))
    assert coverage(compiled, path).linears == {"layer.0.linear": "no matrix product, a kernel that reads fp16"}
    kernels = tuple(replace(kernel, onnx=()) for kernel in compiled.kernels)
    assert coverage(replace(compiled, kernels=kernels), path).linears == {"layer.0.linear": "no kernel names it"}


def test_a_product_outside_the_layers(cover: Cover, write_half: WriteHalf) -> None:
    path = write_half()
    model = onnx.load(path)
    last = model.graph.node[-1]
    weight = numpy_helper.from_array(np.ones((64, 8), np.float16), "classifier.weight")
    model.graph.initializer.append(weight)
    product = helper.make_node("MatMul", [last.input[0], weight.name], ["logits"], "classifier.MatMul")
    last.input[0] = "logits"
    model.graph.node.insert(len(model.graph.node) - 1, product)
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 8
    onnx.save(model, path)
    found = cover(path)
    assert found.outside == {"classifier.MatMul": "float in the graph: fp16 x fp16"}
    assert found.int8_linears == (6, 6)


def test_nodes_without_names(cover: Cover, write_half: WriteHalf) -> None:
    path = write_half()
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, path)
    assert cover(path).int8_linears == (6, 6)


def test_names_that_are_not_unique(cover: Cover, write_half: WriteHalf) -> None:
    path = write_half()
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = "same" if node.op_type == "MatMul" else node.name
    onnx.save(model, path)
    with pytest.raises(BuildError, match=r"several products are named 'same'.* a name of its own"):
        cover(path)
