"""Edits that may cost a fusion: pairs and casts in the way, tensors quantized twice, sizes, late scales."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, TensorProto, helper, numpy_helper

from qdq.studies.linter.graphs.editor import Graph
from qdq.studies.linter.graphs.edits import HEAD, KEY, QUERY, SELF, UP, Edit, X


def quantized_input(graph: Graph) -> None:
    graph.graph.input.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, [1, 1, 32]))
    add = graph.node("bert.embeddings.Add_1")
    add.input[1] = graph.pair("extra", add.name, "extra_pair")


def requantized(graph: Graph) -> None:
    graph.requantize(f"{QUERY}.MatMul", 0, "again", 0.3)


def same_scale_again(graph: Graph) -> None:
    graph.requantize(f"{QUERY}.MatMul", 0, "again", float(graph.value(f"{X}.scale")))


def late_cast(graph: Graph) -> None:
    """FP16 graph whose DQ in front of one product makes FP32, cast back: what opset 17 exporters write."""
    graph.half()
    dequantize = graph.node(f"{UP}.input_quantizer.dequantize")
    wide = graph.set("wide", graph.value(dequantize.input[1]).astype(np.float32))
    product = graph.node(f"{UP}.MatMul")
    inputs = [dequantize.input[0], wide, dequantize.input[2]]
    made = graph.insert(product.name, "DequantizeLinear", inputs, "wide.dq")
    product.input[0] = graph.insert(product.name, "Cast", [made], "narrow", to=TensorProto.FLOAT16)


def useless_cast(graph: Graph) -> None:
    product = graph.node(f"{UP}.MatMul")
    product.input[0] = graph.insert(product.name, "Cast", [product.input[0]], "noop", to=TensorProto.FLOAT)


def second_quantizer(scale: float | None) -> Edit:
    """Another pair on the layer input for the key linear."""

    def apply(graph: Graph) -> None:
        value = float(graph.value(f"{X}.scale")) if scale is None else scale
        source = graph.node(f"{X}.quantize").input[0]
        graph.node(f"{KEY}.MatMul").input[0] = graph.pair(source, f"{KEY}.MatMul", "second", value)

    return apply


def second_reader(graph: Graph) -> None:
    """Another DQ on the codes of the layer input."""
    first = graph.node(f"{X}.dequantize")
    graph.node(f"{KEY}.MatMul").input[0] = graph.insert(
        f"{KEY}.MatMul", "DequantizeLinear", list(first.input), "second.dq"
    )


def head_size(size: int) -> Edit:
    def apply(graph: Graph) -> None:
        for name in ("Reshape", "Reshape_1", "Reshape_2"):
            graph.set(f"{SELF}{name}.shape", np.array([0, 0, 32 // size, size], np.int64))

    return apply


def scaled_scores(op: str) -> Edit:
    def apply(graph: Graph) -> None:
        graph.set("root", np.array(4.0, np.float32))
        add = graph.node(f"{SELF}Add")
        add.input[0] = graph.insert(add.name, op, [add.input[0], "root"], "late")

    return apply


def scaled_query(graph: Graph) -> None:
    graph.set("root", np.array(0.25, np.float32))
    quantize = graph.node(f"{SELF}matmul_q_input_quantizer.quantize")
    quantize.input[0] = graph.insert(quantize.name, "Mul", [quantize.input[0], "root"], "early")


def scalar(graph: Graph) -> None:
    mean = graph.insert(HEAD, "ReduceMean", ["bert.pooler.activation.Tanh"], "scalar", keepdims=0)
    head = graph.node(HEAD)
    bias = graph.insert(HEAD, "Add", ["classifier.bias", graph.pair(mean, HEAD, "point")], "shifted")
    head.input[2] = bias


def conditional(graph: Graph, zero: int = 0) -> None:
    """Replace the head's bias by one of two branches, each of which quantizes it."""

    def branch(name: str) -> GraphProto:
        parameters = [f"{name}.scale", f"{name}.zero"]
        body = helper.make_graph(
            [
                helper.make_node("QuantizeLinear", ["classifier.bias", *parameters], [f"{name}.q"], f"{name}.q"),
                helper.make_node("DequantizeLinear", [f"{name}.q", *parameters], [f"{name}.dq"], f"{name}.dq"),
            ],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}.dq", TensorProto.FLOAT, None)],
        )
        body.initializer.append(numpy_helper.from_array(np.array(0.05, np.float32), f"{name}.scale"))
        body.initializer.append(numpy_helper.from_array(np.array(zero, np.int8), f"{name}.zero"))
        return body

    flag = graph.set("choose.flag", np.array(True))
    branches = {"then_branch": branch("then"), "else_branch": branch("else")}
    graph.node(HEAD).input[2] = graph.insert(HEAD, "If", [flag], "choose", **branches)


def ir_version(version: int) -> Edit:
    return lambda graph: setattr(graph.model, "ir_version", version)
