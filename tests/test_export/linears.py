"""Graphs of quantized linears for tests of lowering passes: ``DQ(Q(x)) -> MatMul(DQ(codes)) -> Add(bias)``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.passes.base import PassResult
from export.unoptimized import open_unoptimized, run

SELF = "encoder.layer.0.attention.self"
STEP = 0.0625  # scale of every input


class Linears:
    """A graph under construction: x [B, S, K] float in, whatever is marked as an output out."""

    def __init__(self, k: int, dtype: Any = np.float32) -> None:
        self.k, self.dtype = k, np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.outputs: list[str] = []

    def constant(self, name: str, value: Any) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def pair(self, tensor: str, point: str, step: float = STEP) -> str:
        """A Q and a DQ with one scale."""
        names = [self.constant(f"{point}.scale", np.asarray(step, self.dtype))]
        names.append(self.constant(f"{point}.zero_point", np.int8(0)))
        codes = self.node("QuantizeLinear", [tensor, *names], f"{point}.quantize")
        return self.node("DequantizeLinear", [codes, *names], f"{point}.dequantize")

    def weight(self, name: str, codes: NDArray[np.int8], scales: Any) -> str:
        """The dequantized weight [K, N], with a scale per column or one for all."""
        point, scales = f"{name}.weight_quantizer", np.asarray(scales, self.dtype)
        names = [self.constant(f"{point}.codes", codes), self.constant(f"{point}.scale", scales)]
        names.append(self.constant(f"{point}.zero_point", np.zeros(scales.shape, np.int8)))
        axis = {"axis": 1} if scales.ndim else {}
        return self.node("DequantizeLinear", names, f"{point}.dequantize", **axis)

    def linear(self, tensor: str, name: str, codes: NDArray[np.int8], scales: Any, bias: Any = None) -> str:
        product = self.node("MatMul", [tensor, self.weight(name, codes, scales)], f"{name}.MatMul")
        if bias is None:
            return product
        return self.node("Add", [product, self.constant(f"{name}.bias", np.asarray(bias, self.dtype))], f"{name}.Add")

    def model(self, *outputs: str, rank: int = 3) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        x = helper.make_tensor_value_info("x", kind, ["b", "s", self.k])
        made = [helper.make_tensor_value_info(name, kind, [None] * rank) for name in outputs]
        graph = helper.make_graph(self.nodes, "linears", [x], made, list(self.constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        return model


def random_codes(seed: int, k: int, n: int) -> NDArray[np.int8]:
    return np.random.default_rng(seed).integers(-127, 128, (k, n)).astype(np.int8)


def applied(step: Any, model: onnx.ModelProto) -> tuple[PassResult, onnx.ModelProto]:
    """One pass as `lower` runs it; what comes out is valid, and a second run changes nothing."""
    graph = gs.import_onnx(model)
    result = step(graph)
    after = _exported(graph)
    again = gs.import_onnx(after)
    assert step(again).changed == ()
    assert _exported(again).SerializeToString() == after.SerializeToString()
    return result, after


def _exported(graph: gs.Graph) -> onnx.ModelProto:
    model: onnx.ModelProto = gs.export_onnx(graph.cleanup().toposort())
    model.ir_version = 10
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    return model


def results(model: onnx.ModelProto, x: NDArray[Any]) -> list[NDArray[Any]]:
    names = [value.name for value in model.graph.output]
    return run(open_unoptimized(model.SerializeToString(), Path()), {"x": x}, names)


def values(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def inputs(k: int, rows: tuple[int, int] = (2, 5), dtype: Any = np.float32) -> NDArray[Any]:
    """Beyond 127 steps here and there, so that codes saturate."""
    return np.random.default_rng(3).normal(0, 4, (*rows, k)).astype(dtype)
