"""Counting what a graph multiplies, in the canonical, the FP32 and a lowered graph alike."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.inventory import GraphIndex, inventory
from export.passes import lower

LINEARS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


@pytest.fixture
def model(canonical: Path) -> ModelProto:
    return onnx.load(canonical)


def without_quantization(model: ModelProto) -> ModelProto:
    """The same graph in FP32: weights dequantized into initializers, activation pairs bypassed."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    renamed: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        if node.op_type == "QuantizeLinear":
            renamed[node.output[0]] = node.input[0]
        elif node.op_type == "DequantizeLinear" and node.input[0] in values:
            weight = values[node.input[0]].astype(np.float32) * values[node.input[1]]
            model.graph.initializer.append(numpy_helper.from_array(weight, node.output[0]))
        elif node.op_type == "DequantizeLinear":
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def test_canonical_graph(model: ModelProto) -> None:
    found = inventory(model)
    expected = {f"bert.encoder.layer.{layer}.{linear}.MatMul" for layer in (0, 1) for linear in LINEARS}
    assert set(found.encoder_linear) == expected
    assert found.attention_matmul == tuple(
        f"bert.encoder.layer.{layer}.attention.self.{matmul}" for layer in (0, 1) for matmul in ("MatMul", "MatMul_1")
    )
    assert all(found.quantized[name] == (0, 1) for name in (*found.encoder_linear, *found.attention_matmul))
    assert found.other == {
        "bert.pooler.dense.Gemm": "pooler, outside the encoder blocks; float in this graph",
        "classifier.Gemm": "task head, outside the encoder blocks; float in this graph",
    }


def test_the_fp32_graph_has_the_same_inventory_and_nothing_quantized(model: ModelProto) -> None:
    quantized = inventory(model)
    found = inventory(without_quantization(model))
    assert found.encoder_linear == quantized.encoder_linear
    assert found.attention_matmul == quantized.attention_matmul
    assert set(found.quantized.values()) == {()}


@pytest.mark.parametrize("target", ["openvino", "onnxruntime", "tensorrt"])
def test_lowered_graphs_have_the_same_inventory(canonical: Path, tmp_path: Path, target: str) -> None:
    lower(canonical, target, tmp_path)
    before, after = inventory(onnx.load(canonical)), inventory(onnx.load(tmp_path / "model.onnx"))
    assert sorted(after.encoder_linear) == sorted(before.encoder_linear)
    assert sorted(after.attention_matmul) == sorted(before.attention_matmul)
    assert after.quantized == before.quantized


def test_a_linear_left_float_is_told_apart(model: ModelProto) -> None:
    name = "bert.encoder.layer.1.output.dense.MatMul"
    matmul = next(node for node in model.graph.node if node.name == name)
    quantize = next(n for n in model.graph.node if n.name == matmul.input[0].replace(".dequantize", ".quantize"))
    matmul.input[0] = quantize.input[0]
    found = inventory(model)
    assert found.quantized[name] == (1,)
    assert found.quantized[name] != (0, 1)
    assert name in found.encoder_linear  # still one of the linears that count


def graph(nodes: list[NodeProto], constants: dict[str, np.ndarray]) -> ModelProto:
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
    )


WEIGHT = np.ones((4, 4), np.float32)
SCALED: dict[str, np.ndarray] = {"w": WEIGHT, "s": np.array(1, np.float32), "z": np.array(0, np.int8)}
PAIR = [
    helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
    helper.make_node("DequantizeLinear", ["q", "s"], ["d"]),
]


@pytest.mark.parametrize(
    "before",
    [
        [*PAIR, helper.make_node("Transpose", ["d"], ["last"])],
        [helper.make_node("Mul", ["w", "s"], ["last"])],
        [helper.make_node("Constant", [], ["last"], value=numpy_helper.from_array(WEIGHT))],
    ],
    ids=["transposed pair", "scaled", "constant node"],
)
def test_a_weight_is_constant_through_whatever_prepares_it(before: list[NodeProto]) -> None:
    matmul = helper.make_node("MatMul", ["x", "last"], ["y"], name="encoder.layer.0.a.MatMul")
    assert inventory(graph([*before, matmul], SCALED)).encoder_linear == ("encoder.layer.0.a.MatMul",)


def test_names_outside_encoder_blocks_are_never_encoder_linears() -> None:
    names = [
        "embeddings_project.MatMul",
        "encoder.embedding_hidden_mapping_in.MatMul",
        "cls.predictions.decoder.MatMul",
    ]
    nodes = [helper.make_node("MatMul", ["x", "w"], [f"y{i}"], name=name) for i, name in enumerate(names)]
    found = inventory(graph(nodes, {"w": WEIGHT}))
    assert found.encoder_linear == ()
    assert [reason.split(",")[0] for reason in found.other.values()] == ["embedding projection"] * 2 + ["task head"]


def test_dequantizer_is_seen_through_layout_ops_only() -> None:
    layout = [*PAIR, helper.make_node("Transpose", ["d"], ["t"]), helper.make_node("Relu", ["d"], ["r"])]
    index = GraphIndex(graph(layout, SCALED).graph)
    through, stopped = index.dequantizer("t"), index.dequantizer("r")
    assert through is not None
    assert list(through.output) == ["d"]
    assert stopped is None


def test_a_very_deep_graph_does_not_recurse() -> None:
    names = ["x", *(f"t{i}" for i in range(3000))]
    chain = [helper.make_node("Relu", [a], [b], name=b) for a, b in pairwise(names)]
    matmul = helper.make_node("MatMul", [names[-1], names[-1]], ["y"], name="encoder.layer.0.MatMul")
    assert inventory(graph([*chain, matmul], {})).attention_matmul == ("encoder.layer.0.MatMul",)


def test_a_skip_that_undoes_smoothing_is_quantized_and_a_product_behind_a_factor_is_not(model: ModelProto) -> None:
    """Build a skip that shares the linears' codes as calibration writes it: ``DQ(Q(x * f)) / f``."""
    add = next(node for node in model.graph.node if node.name == "bert.encoder.layer.0.attention.output.Add")
    product = next(node for node in model.graph.node if node.name.endswith("layer.0.intermediate.dense.MatMul"))
    model.graph.initializer.append(numpy_helper.from_array(np.full(32, 2, np.float32), "factor"))
    for node, operand in ((add, 1), (product, 0)):
        name = f"{node.name}.undone"
        divide = helper.make_node("Div", [node.input[operand], "factor"], [name], name)
        model.graph.node.insert(list(model.graph.node).index(node), divide)
        node.input[operand] = name
    index = GraphIndex(model.graph)
    route, dequantize = index.to_operand(add, 1)
    assert [node.op_type for node in route] == ["Div"]
    assert dequantize is not None and dequantize.op_type == "DequantizeLinear"
    assert index.to_operand(product, 0)[1] is None
