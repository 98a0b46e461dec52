"""Edits of a graph that keep its meaning or break one thing: operands, weights, norms, GELUs, masks; and node names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper

from qdq.studies.linter.graphs.editor import Graph

Edit = Callable[[Graph], None]

L0 = "bert.encoder.layer.0."
SELF = f"{L0}attention.self."
X = f"{SELF}query.input_quantizer"  # the layer input: one pair for query, key, value and the residual add
PAIR = (f"{X}.quantize", f"{X}.dequantize")
QUERY, KEY = f"{SELF}query", f"{SELF}key"
WEIGHT = f"{QUERY}.weight_quantizer.dequantize"
SOFTMAX, BMM1, BMM2 = f"{SELF}Softmax", f"{SELF}MatMul", f"{SELF}MatMul_1"
UP, ADD = f"{L0}intermediate.dense", f"{L0}output.Add"
GELU = f"{L0}intermediate.intermediate_act_fn.Gelu"
NORM = f"{L0}output.LayerNorm.LayerNormalization"
HEAD = "classifier.Gemm"


def edit(*steps: Edit) -> Edit:
    """Several edits as one."""

    def apply(graph: Graph) -> None:
        for step in steps:
            step(graph)

    return apply


def without_zero_point(*nodes: str) -> Edit:
    def apply(graph: Graph) -> None:
        for name in nodes:
            graph.node(name).input.pop()

    return apply


def weight_scale(shape: tuple[int, ...], axis: int | None = 1, linear: str = QUERY) -> Edit:
    def apply(graph: Graph) -> None:
        graph.set(f"{linear}.weight_quantizer.scale", np.full(shape, 0.01, np.float32))
        graph.set(f"{linear}.weight_quantizer.zero_point", np.zeros(shape, np.int8))
        graph.attribute(f"{linear}.weight_quantizer.dequantize", "axis", axis)

    return apply


def transposed_weight(axis: int) -> Edit:
    """The weight of the first FFN linear as (N, K), transposed behind its DQ."""

    def apply(graph: Graph) -> None:
        weight_scale((64,) if axis == 0 else (32,), axis, UP)(graph)
        graph.set(f"{UP}.weight_quantizer.codes", np.ones((64, 32), np.int8))
        product = graph.node(f"{UP}.MatMul")
        product.input[1] = graph.insert(f"{UP}.MatMul", "Transpose", [product.input[1]], "turned", perm=[1, 0])

    return apply


def gemm_weight(axis: int, trans: int = 1) -> Edit:
    """The classifier Gemm with a quantized (3, 32) weight."""

    def apply(graph: Graph) -> None:
        size = (3, 32)[axis]
        parameters = [graph.set("s", np.full(size, 0.1, np.float32)), graph.set("z", np.zeros(size, np.int8))]
        graph.set("codes", np.ones((3, 32) if trans else (32, 3), np.int8))
        graph.node(HEAD).input[1] = graph.insert(HEAD, "DequantizeLinear", ["codes", *parameters], "w.dq", axis=axis)
        graph.attribute(HEAD, "transB", trans)
        graph.requantize(HEAD, 0, "head")

    return apply


def moved_codes(graph: Graph) -> None:
    dequantize = graph.node(f"{SELF}matmul_k_input_quantizer.dequantize")
    turned = graph.insert(dequantize.name, "Transpose", [dequantize.input[0]], "moved", perm=[0, 1, 3, 2])
    dequantize.input[0] = turned
    graph.node(BMM1).input[1] = dequantize.output[0]


def float_linear(graph: Graph) -> None:
    graph.float_operand(f"{QUERY}.MatMul", 0)
    graph.float_operand(f"{QUERY}.MatMul", 1)


def float_attention(graph: Graph) -> None:
    for node in (BMM1, BMM2):
        for operand in (0, 1):
            graph.float_operand(node, operand)


def float_residual(graph: Graph) -> None:
    graph.float_operand(ADD, 0)
    graph.float_operand(ADD, 1)


def masked_by_where(graph: Graph) -> None:
    """Another mask form: Where on the scores instead of an added bias."""
    graph.set("low", np.array(-1e4, np.float32))
    keep = graph.insert(f"{SELF}Add", "Cast", [graph.node(f"{SELF}Add").input[1]], "keep", to=TensorProto.BOOL)
    graph.node(f"{SELF}Add").CopyFrom(helper.make_node("Where", [keep, "low", BMM1], [f"{SELF}Add"], f"{SELF}Add"))


def tanh_gelu(graph: Graph) -> None:
    """The GELU as the tanh approximation: ½x·(1+tanh(√(2/π)·(x+0.044715·x³)))."""
    x, output = graph.node(GELU).input[0], graph.node(GELU).output[0]
    for name, value in (("three", 3.0), ("c", 0.044715), ("root", 0.7978846), ("one", 1.0), ("half", 0.5)):
        graph.set(name, np.array(value, np.float32))
    cube = graph.insert(GELU, "Mul", [graph.insert(GELU, "Pow", [x, "three"], "g.pow"), "c"], "g.cube")
    inner = graph.insert(GELU, "Mul", [graph.insert(GELU, "Add", [x, cube], "g.sum"), "root"], "g.inner")
    plus = graph.insert(GELU, "Add", [graph.insert(GELU, "Tanh", [inner], "g.tanh"), "one"], "g.plus")
    halved = graph.insert(GELU, "Mul", [x, "half"], "g.half")
    graph.node(GELU).CopyFrom(helper.make_node("Mul", [halved, plus], [output], GELU))


def written_norm(crossed: bool = False) -> Edit:
    """The layer's last LayerNormalization in primitive ops, with a pair inside or not."""

    def apply(graph: Graph) -> None:
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

    return apply


def erf_gelu(order: str = "x first", crossed: bool = False) -> Edit:
    """The GELU as x·½(1+erf(x/√2)), multiplied in one of the orders exporters choose, with a pair inside or not."""

    def apply(graph: Graph) -> None:
        x, output = graph.node(GELU).input[0], graph.node(GELU).output[0]
        for name, value in (("root2", 2**0.5), ("one", 1.0), ("half", 0.5)):
            graph.set(name, np.array(value, np.float32))
        erf = graph.insert(GELU, "Erf", [graph.insert(GELU, "Div", [x, "root2"], "g.div")], "g.erf")
        if crossed:
            erf = graph.pair(erf, GELU, "inside")
        left, right = x, graph.insert(GELU, "Add", [erf, "one"], "g.add")
        if order == "x first":
            left, right = graph.insert(GELU, "Mul", [left, right], "g.mul"), "half"
        elif order == "half on x":
            left = graph.insert(GELU, "Mul", [left, "half"], "g.mul")
        else:
            right = graph.insert(GELU, "Mul", [right, "half"], "g.mul")
        graph.node(GELU).CopyFrom(helper.make_node("Mul", [left, right], [output], GELU))

    return apply
