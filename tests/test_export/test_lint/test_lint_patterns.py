"""Blocks are found by wiring, however an exporter spells and names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from export.lint import FusedLayer, fusion_map, lint
from qdq.studies.linter.graphs.edits import SELF, UP, Edit, erf_gelu, masked_by_where, tanh_gelu, written_norm

from .graphs import fired

Edited = Callable[..., onnx.ModelProto]


def kinds(layers: tuple[FusedLayer, ...]) -> list[tuple[str, str, str, int | None]]:
    """What a map says, without names, and without order among LayerNorms."""
    return sorted((layer.kind, layer.precision, layer.role, layer.head_size) for layer in layers)


def nan_guard(graph: Any) -> None:
    """What torch's scaled_dot_product_attention exports behind the softmax."""
    graph.set("nought", np.array(0, np.float32))
    quantize = f"{SELF}matmul_a_input_quantizer.quantize"
    nan = graph.insert(quantize, "IsNaN", [f"{SELF}Softmax"], "nan")
    graph.node(quantize).input[0] = graph.insert(quantize, "Where", [nan, "nought", f"{SELF}Softmax"], "guarded")


def float_weight_pair(graph: Any) -> None:
    """A weight as float initializer, Q, DQ and Transpose: what ModelOpt and pytorch-quantization write."""
    weight, product = f"{UP}.weight_quantizer", graph.node(f"{UP}.MatMul")
    graph.set("w", graph.value(f"{weight}.codes").T.astype(np.float32))
    parameters = [f"{weight}.scale", f"{weight}.zero_point"]
    codes = graph.insert(product.name, "QuantizeLinear", ["w", *parameters], "w.q", axis=0)
    made = graph.insert(product.name, "DequantizeLinear", [codes, *parameters], "w.dq", axis=0)
    product.input[1] = graph.insert(product.name, "Transpose", [made], "w.t", perm=[1, 0])


def constants_as_nodes(graph: Any) -> None:
    """Every scale and zero-point as a Constant node, as the older torch exporter writes them."""
    for tensor in list(graph.graph.initializer):
        if tensor.name.endswith((".scale", ".zero_point")):
            graph.graph.node.insert(
                0, helper.make_node("Constant", [], [tensor.name], f"{tensor.name}.c", value=tensor)
            )
            graph.graph.initializer.remove(tensor)


def computed_reshape(graph: Any) -> None:
    """The query's Reshape with its shape from Shape, Gather and Concat, the heads as -1."""
    name = f"{SELF}Reshape"
    x = graph.node(name).input[0]
    shape = graph.insert(name, "Shape", [x], "r.shape")
    for position in (0, 1):
        graph.set(f"r.at{position}", np.array([position], np.int64))
    graph.set("r.tail", np.array([-1, 16], np.int64))
    dims = [graph.insert(name, "Gather", [shape, f"r.at{i}"], f"r.dim{i}") for i in (0, 1)]
    graph.node(name).input[1] = graph.insert(name, "Concat", [*dims, "r.tail"], "r.all", axis=0)


def initializers_as_inputs(graph: Any) -> None:
    """IR 3 habit: every initializer is also a graph input."""
    for tensor in graph.graph.initializer:
        graph.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


SPELLINGS: dict[str, Edit] = {
    "LayerNorm in primitive ops": written_norm(),
    "erf GELU, x first": erf_gelu("x first"),
    "erf GELU, half on x": erf_gelu("half on x"),
    "erf GELU, half on 1+erf": erf_gelu("half on 1+erf"),
    "tanh GELU": tanh_gelu,
    "mask by Where": masked_by_where,
    "NaN guard behind softmax": nan_guard,
    "float weight with Q, DQ and Transpose": float_weight_pair,
    "scales in Constant nodes": constants_as_nodes,
    "computed reshape": computed_reshape,
    "initializers as inputs": initializers_as_inputs,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_another_spelling_gives_the_same_map_and_no_finding(
    spelling: str, model: onnx.ModelProto, edited: Edited
) -> None:
    report = lint(edited(SPELLINGS[spelling]), "trt11")
    assert fired(report) == ("QDQ-N304",)
    assert kinds(report.layers) == kinds(fusion_map(model))


def test_names_mean_nothing(model: onnx.ModelProto, edited: Edited) -> None:
    def anonymous(graph: Any) -> None:
        for node in graph.graph.node:
            node.name = ""

    layers = fusion_map(edited(anonymous))
    assert kinds(layers) == kinds(fusion_map(model))
    assert layers[0].name == "LayerNormalization -> bert.embeddings.LayerNorm.LayerNormalization"

    def broken(graph: Any) -> None:
        graph.float_operand(f"{UP}.MatMul", 0)
        anonymous(graph)

    (finding,) = lint(edited(broken), "trt11").of("performance")
    assert finding.nodes == (f"MatMul -> {UP}.MatMul",)


def test_one_linear_for_query_key_and_value(edited: Edited) -> None:
    """A fused projection behind a Split serves all three operands."""

    def fuse(graph: Any) -> None:
        weight = f"{SELF}query.weight_quantizer"
        graph.set(f"{weight}.codes", np.ones((32, 96), np.int8))
        graph.set(f"{weight}.scale", np.full(96, 0.1, np.float32))
        graph.set(f"{weight}.zero_point", np.zeros(96, np.int8))
        graph.set(f"{SELF}query.bias", np.ones(96, np.float32))
        graph.set("thirds", np.array([32, 32, 32], np.int64))
        outputs = ["third.q", "third.k", "third.v"]
        position = [node.name for node in graph.graph.node].index(f"{SELF}query.Add") + 1
        split = helper.make_node("Split", [f"{SELF}query.Add", "thirds"], outputs, "split", axis=-1)
        graph.graph.node.insert(position, split)
        for reshape, third in zip(("Reshape", "Reshape_1", "Reshape_2"), outputs, strict=True):
            graph.node(f"{SELF}{reshape}").input[0] = third
        for linear in ("key", "value"):
            for node in (
                f"{SELF}{linear}.MatMul",
                f"{SELF}{linear}.Add",
                f"{SELF}{linear}.weight_quantizer.dequantize",
            ):
                graph.graph.node.remove(graph.node(node))

    report = lint(edited(fuse), "trt11")
    assert fired(report) == ("QDQ-P213", "QDQ-N304")
    first = [layer for layer in report.layers if layer.layer == 0]
    assert next((layer.role, layer.k, layer.n) for layer in first if layer.role) == ("qkv", 32, 96)
    assert [layer.heads for layer in first if layer.kind == "int8_fused_attention"] == [2]


def test_a_graph_without_quantization_is_all_float(edited: Edited) -> None:
    layers = fusion_map(edited(lambda graph: graph.strip()))
    assert {layer.kind for layer in layers if layer.role} == {"float_gemm"}
    assert {layer.precision for layer in layers} == {"fp32"}
    attention = next(layer for layer in layers if layer.heads)
    assert (attention.kind, attention.reason) == (
        "unfused",
        "its BMMs are FP32, fused attention takes FP16, BF16 or INT8",
    )


def test_float_attention_fuses_in_fp16(edited: Edited) -> None:
    def strip_half(graph: Any) -> None:
        graph.strip()
        graph.half()

    layers = fusion_map(edited(strip_half))
    assert [layer.kind for layer in layers if layer.heads] == ["float_fused_attention"] * 2
    assert {layer.precision for layer in layers} == {"fp16"}
    assert [layer.kind for layer in fusion_map(edited(strip_half), sm=70) if layer.heads] == ["unfused"] * 2


def test_pooler_and_head_belong_to_no_layer(model: onnx.ModelProto) -> None:
    outside = [layer for layer in fusion_map(model) if "gemm" in layer.kind and not layer.role]
    assert [(layer.name, layer.layer, layer.k, layer.n) for layer in outside] == [
        ("bert.pooler.dense.Gemm", None, 32, 32),
        ("classifier.Gemm", None, 32, 3),
    ]


def test_what_inference_cannot_type_is_no_obstacle(edited: Edited) -> None:
    """An unknown op and a wrong shape leave unknowns; the rest is still found."""

    def odd(graph: Any) -> None:
        graph.node("bert.pooler.activation.Tanh").op_type = "Swoosh"
        graph.node("bert.pooler.activation.Tanh").domain = "my.plugins"
        graph.set(f"{SELF}Reshape.shape", np.array([0, 0, 5, 7], np.int64))

    layers = fusion_map(edited(odd))
    assert sum(layer.kind == "int8_gemm" for layer in layers) == 12
