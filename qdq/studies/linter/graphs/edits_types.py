"""Edits of types and wiring that other tools leave behind: INT32 biases, casts, foreign operators, merged forms."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper

from qdq.studies.linter.graphs.editor import Graph
from qdq.studies.linter.graphs.edits import GELU, HEAD, QUERY, UP, WEIGHT, Edit, X

TANH = "bert.pooler.activation.Tanh"


def unsigned_weight(graph: Graph) -> None:
    graph.set(f"{QUERY}.weight_quantizer.codes", np.ones((32, 32), np.uint8))
    graph.set(f"{QUERY}.weight_quantizer.zero_point", np.zeros(32, np.uint8))


def quantized_bias(graph: Graph) -> None:
    """The bias of a linear as INT32 codes, as ONNX Runtime's quantizer writes it."""
    codes = graph.set("bias.codes", np.ones(64, np.int32))
    scale = graph.set("bias.scale", np.full(64, 1e-4, np.float32))
    add = graph.node(f"{UP}.Add")
    add.input[1] = graph.insert(add.name, "DequantizeLinear", [codes, scale], "bias.dq", axis=0)


def blocked_int4_weight(graph: Graph) -> None:
    scale = graph.set("blocked.scale", np.full((2, 32), 0.01, np.float32))
    graph.graph.initializer.append(helper.make_tensor("blocked.codes", TensorProto.INT4, (32, 32), [1] * 1024))
    product = graph.node(f"{QUERY}.MatMul")
    inputs = ["blocked.codes", scale]
    made = graph.insert(product.name, "DequantizeLinear", inputs, "blocked.dq", axis=0, block_size=16)
    product.input[1] = made


def int4_weight(*scales: float) -> Edit:
    """The query's weight as INT4 codes, with one scale or one per channel."""

    def apply(graph: Graph) -> None:
        values = np.array(scales[0] if len(scales) == 1 else scales, np.float32)
        scale = graph.set("int4.scale", values)
        graph.graph.initializer.append(helper.make_tensor("int4.codes", TensorProto.INT4, (32, 32), [1] * 1024))
        product = graph.node(f"{QUERY}.MatMul")
        axis = {"axis": 1} if values.ndim else {}
        product.input[1] = graph.insert(product.name, "DequantizeLinear", ["int4.codes", scale], "int4.dq", **axis)

    return apply


def microsoft(op: str, *nodes: str) -> Edit:
    """Nodes turned into an operator of ONNX Runtime's domain."""

    def apply(graph: Graph) -> None:
        for name in nodes:
            node = graph.node(name)
            node.op_type, node.domain = op or node.op_type, "com.microsoft"
        graph.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    return apply


def microsoft_pairs(graph: Graph) -> None:
    pairs = (node.name for node in graph.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear"))
    microsoft("", *pairs)(graph)


def determinant(graph: Graph) -> None:
    """A standard op that the parser has no importer for."""
    ones = graph.set("ones", np.eye(2, dtype=np.float32))
    head = graph.node(HEAD)
    head.input[2] = graph.insert(HEAD, "Add", [head.input[2], graph.insert(HEAD, "Det", [ones], "det")], "shifted")


def integer_product(graph: Graph) -> None:
    """The query product as QLinearMatMul, which reads codes and scales itself."""
    product = graph.node(f"{QUERY}.MatMul")
    scale, zero = graph.set("w.scale", np.array(0.01, np.float32)), graph.set("w.zero", np.array(0, np.int8))
    left = [f"{X}.quantize", f"{X}.scale", f"{X}.zero_point"]
    inputs = [*left, f"{QUERY}.weight_quantizer.codes", scale, zero, scale, zero]
    codes = graph.insert(product.name, "QLinearMatMul", inputs, "integer")
    product.CopyFrom(helper.make_node("DequantizeLinear", [codes, scale, zero], [product.output[0]], product.name))


def read_codes(graph: Graph) -> None:
    graph.node(f"{QUERY}.MatMul").input[0] = f"{X}.quantize"


def unread_codes(graph: Graph) -> None:
    graph.insert(HEAD, "QuantizeLinear", [TANH, f"{X}.scale", f"{X}.zero_point"], "unread")


def used_codes(graph: Graph) -> None:
    """The codes of a Q cast to float, and added to the logits."""
    cast = graph.insert(HEAD, "Cast", [f"{X}.quantize"], "cast", to=TensorProto.FLOAT)
    mean = graph.insert(HEAD, "ReduceMean", [cast], "mean", keepdims=0)
    head = graph.node(HEAD)
    head.input[2] = graph.insert(HEAD, "Add", [head.input[2], mean], "shifted")


def wide_points(*points: str) -> Edit:
    """An FP16 graph in which these points have FP32 scales, with a Cast in front of every reader."""

    def apply(graph: Graph) -> None:
        graph.half()
        for point in points:
            dequantize = graph.node(f"{point}.dequantize")
            dequantize.input[1] = graph.set(f"{point}.wide", graph.value(dequantize.input[1]).astype(np.float32))
            for reader in _readers(graph, dequantize.output[0]):
                place = list(reader.input).index(dequantize.output[0])
                name = f"{reader.name}.cast_{place}"
                reader.input[place] = graph.insert(
                    reader.name, "Cast", [dequantize.output[0]], name, to=TensorProto.FLOAT16
                )

    return apply


def _readers(graph: Graph, tensor: str) -> list[NodeProto]:
    return [node for node in graph.graph.node if tensor in node.input]


def own_ops_of_opset_12(graph: Graph) -> None:
    """Opset 12 with Unsqueeze's axes as an attribute, as that opset has them."""
    node = graph.node("bert.Unsqueeze")
    node.CopyFrom(helper.make_node("Unsqueeze", node.input[:1], node.output, node.name, axes=[1, 2]))
    graph.opset(12)


def taken_apart(graph: Graph) -> None:
    """The result of a linear split in two, and put together again behind a Neg of each part."""
    add = graph.node(f"{UP}.Add")
    sizes = graph.set("sizes", np.array([32, 32], np.int64))
    position = [node.name for node in graph.graph.node].index(add.name) + 1
    graph.graph.node.insert(
        position, helper.make_node("Split", [add.output[0], sizes], ["one", "two"], "parts", axis=-1)
    )
    parts = [graph.insert(GELU, "Neg", [part], f"minus.{part}") for part in ("one", "two")]
    graph.node(GELU).input[0] = graph.insert(GELU, "Concat", parts, "whole", axis=-1)


def in_bfloat16(graph: Graph) -> None:
    """One tensor cast to BF16 and back."""
    head = graph.node(HEAD)
    narrow = graph.insert(HEAD, "Cast", [head.input[0]], "narrow", to=TensorProto.BFLOAT16)
    head.input[0] = graph.insert(HEAD, "Cast", [narrow], "wide", to=TensorProto.FLOAT)


def query_scale(value: float) -> Edit:
    """One weight scale for the query, whatever the others have."""

    def apply(graph: Graph) -> None:
        graph.set(f"{QUERY}.weight_quantizer.scale", np.array(value, np.float32))
        graph.set(f"{QUERY}.weight_quantizer.zero_point", np.array(0, np.int8))
        graph.attribute(WEIGHT, "axis", None)

    return apply


def without_zero_points(graph: Graph) -> None:
    for node in graph.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) == 3:
            node.input.pop()


def plugin(graph: Graph) -> None:
    node = graph.node(TANH)
    node.op_type, node.domain = "CustomTanh", "my.plugins"
    graph.model.opset_import.append(helper.make_opsetid("my.plugins", 1))


def fast_gelu(graph: Graph) -> None:
    microsoft("FastGelu", GELU)(graph)
