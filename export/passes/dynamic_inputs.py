"""Pass: a linear with INT8 weights quantizes its float input at run time, from the range of each tensor."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from export.names import DEQUANTIZE
from export.passes.base import Declined, PassResult

MATMUL = "MatMul"


def dynamic_inputs(graph: gs.Graph) -> PassResult:
    """Multiply codes.

    Before: ``x (float) -> MatMul``, ``codes INT8 -> DQ -> MatMul``.
    After: ``x -> DynamicQuantizeLinear -> MatMulInteger(codes) -> Cast -> Mul(scale of x * scales of the weight)``,
    which ONNX Runtime fuses into one operator; linears that read one tensor share its DynamicQuantizeLinear. The
    values are those of the float MatMul on the rounded input.
    Leaves alone: a MatMul of two computed tensors, one whose input is quantized already, and, declined with the
    reason, Gemm and weights whose scales are not per tensor or per output channel.
    """
    inputs = _Inputs(graph)
    changed: list[str] = []
    declined: list[Declined] = []
    for node in list(graph.nodes):
        if node.op not in (MATMUL, "Gemm") or _dequantizer(node.inputs[0]) is not None:
            continue
        weight = _dequantizer(node.inputs[1])
        if weight is None or not isinstance(weight.inputs[0], gs.Constant):
            continue
        if reason := _obstacle(node, weight):
            declined.append(Declined(node.name, reason))
            continue
        _multiply_codes(graph, node, weight, inputs.of(node.inputs[0]))
        changed.append(node.name)
    return PassResult(tuple(changed), tuple(declined))


class _Inputs:
    """The run-time quantizer of each tensor: codes u8, scale and zero-point, made when first asked for."""

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._made: dict[int, tuple[gs.Variable, gs.Variable, gs.Variable]] = {}

    def of(self, tensor: gs.Tensor) -> tuple[gs.Variable, gs.Variable, gs.Variable]:
        if id(tensor) not in self._made:
            kinds = (("codes", np.uint8), ("scale", np.float32), ("zero_point", np.uint8))
            made = tuple(gs.Variable(f"{tensor.name}.dynamic.{kind}", dtype=np.dtype(dtype)) for kind, dtype in kinds)
            name = f"{tensor.name}.dynamic_quantize"
            self._graph.nodes.append(gs.Node("DynamicQuantizeLinear", name, {}, [tensor], list(made)))
            self._made[id(tensor)] = (made[0], made[1], made[2])
        return self._made[id(tensor)]


def _dequantizer(tensor: gs.Tensor) -> gs.Node | None:
    producer = tensor.inputs[0] if tensor.inputs else None
    return producer if producer is not None and producer.op == DEQUANTIZE else None


def _obstacle(node: gs.Node, weight: gs.Node) -> str | None:
    """Return the reason why a multiplication stays float; None when it need not."""
    if node.op != MATMUL:
        return f"{node.op} has no integer form with a run-time scale"
    codes, scale = np.asarray(weight.inputs[0].values), np.asarray(weight.inputs[1].values)
    if codes.ndim != 2 or (scale.ndim and weight.attrs.get("axis", 1) != 1):
        return "its weight has no scale per output channel"
    return None


def _multiply_codes(
    graph: gs.Graph, node: gs.Node, weight: gs.Node, quantized: tuple[gs.Variable, gs.Variable, gs.Variable]
) -> None:
    codes, scale, zero = quantized
    sums = gs.Variable(f"{node.name}.sums", dtype=np.dtype(np.int32))
    values = gs.Variable(f"{node.name}.float", dtype=np.dtype(np.float32))
    both = gs.Variable(f"{node.name}.scale", dtype=np.dtype(np.float32))
    result, (weight_codes, weight_scale) = node.outputs[0], weight.inputs[:2]
    symmetric = gs.Constant(f"{node.name}.zero_point", np.array(0, np.int8))
    node.outputs = []
    graph.nodes += [
        gs.Node("MatMulInteger", node.name, {}, [codes, weight_codes, zero, symmetric], [sums]),
        gs.Node("Cast", f"{node.name}.cast", {"to": TensorProto.FLOAT}, [sums], [values]),
        gs.Node("Mul", f"{node.name}.scales", {}, [scale, weight_scale], [both]),
        gs.Node("Mul", f"{node.name}.rescale", {}, [values, both], [result]),
    ]
