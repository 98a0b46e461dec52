"""Pass: a linear with INT8 weights quantizes its float input at run time, from the range of each tensor."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from export.names import DEQUANTIZE
from export.passes.base import Declined, PassResult

MATMUL = "MatMul"
Quantized = tuple[gs.Variable, gs.Variable, gs.Variable]  # codes u8, scale, zero-point


def dynamic_inputs(graph: gs.Graph) -> PassResult:
    """Multiply codes.

    Before: ``x (float) -> MatMul``, ``codes INT8 -> DQ -> MatMul``.
    After: ``x -> DynamicQuantizeLinear -> MatMulInteger(codes) -> Cast -> Mul(scale of x * scales of the weight)``,
    which ONNX Runtime fuses into one operator; linears that read one tensor share its DynamicQuantizeLinear. The
    values are those of the float MatMul on the rounded input.
    Leaves alone: a MatMul of two computed tensors, one whose input is quantized already, and, declined with the
    reason, Gemm and weights whose scales are not per tensor or per output channel.
    """
    quantized: dict[int, Quantized] = {}  # id of a tensor -> what its run-time quantizer makes
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
        tensor = node.inputs[0]
        if id(tensor) not in quantized:
            quantized[id(tensor)] = _run_time_quantizer(graph, tensor)
        _multiply_codes(graph, node, weight, quantized[id(tensor)])
        changed.append(node.name)
    return PassResult(tuple(changed), tuple(declined))


def _run_time_quantizer(graph: gs.Graph, tensor: gs.Tensor) -> Quantized:
    kinds = (("codes", np.uint8), ("scale", np.float32), ("zero_point", np.uint8))
    codes, scale, zero = (gs.Variable(f"{tensor.name}.dynamic.{kind}", dtype=np.dtype(dtype)) for kind, dtype in kinds)
    name = f"{tensor.name}.dynamic_quantize"
    graph.nodes.append(gs.Node("DynamicQuantizeLinear", name, {}, [tensor], [codes, scale, zero]))
    return codes, scale, zero


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


def _multiply_codes(graph: gs.Graph, node: gs.Node, weight: gs.Node, quantized: Quantized) -> None:
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
