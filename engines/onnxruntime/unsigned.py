"""Weights as u8 codes around 128 instead of s8 around 0, for a CPU that adds s8 products in saturating pairs.

ONNX Runtime multiplies u8 by u8 exactly on every CPU: without VNNI it widens both to INT16 and sums in INT32. The
session option ``session.x64quantprecision`` makes it recode weights so when it loads a graph; written into the graph it
holds for every reader, and Triton's backend passes that option on to nobody (src/onnxruntime.cc of
github.com/triton-inference-server/onnxruntime_backend knows a fixed list of parameters). With VNNI the u8 kernel takes
about twice the time of the s8 one, and the option would choose it there, too: ONNX Runtime 1.31 compares the two tables
of kernels (``MlasPlatformU8S8Overflow``), which differ on every CPU with AVX2. So neither is used where sums are exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Operator -> places of its weight and of that weight's zero-point.
PLACES = {"MatMulIntegerToFloat": (1, 5), "DynamicQuantizeMatMul": (1, 3), "MatMulInteger": (1, 3)}
CENTRE = 128


def unsigned_weights(graph: Any) -> int:
    """Recode the s8 weights of INT8 multiplications in a graphsurgeon graph, in place; how many multiplications.

    Every product stays what it is: code and zero-point move together. Weights whose other operand is float are left
    alone, because those multiply floats; so is what is u8 already.
    """
    import onnx_graphsurgeon as gs

    recoded: dict[int, Any] = {}  # id of a weight's codes -> the u8 constant
    done = 0
    for node in [node for node in graph.nodes if node.op in PLACES or node.op in ("MatMul", "Gemm")]:
        holder, (codes, zero) = (node, PLACES[node.op]) if node.op in PLACES else (_dequantizer(node), (0, 2))
        if holder is None or not isinstance(holder.inputs[codes], gs.Constant):
            continue
        weight = holder.inputs[codes]
        if weight.values.dtype != np.int8:
            continue
        holder.inputs += [gs.Variable.empty()] * (zero + 1 - len(holder.inputs))
        old = holder.inputs[zero]
        shift = old.values if isinstance(old, gs.Constant) else np.zeros((), np.int8)
        if id(weight) not in recoded:
            recoded[id(weight)] = gs.Constant(f"{weight.name}.u8", _unsigned(weight.values))
        holder.inputs[codes] = recoded[id(weight)]
        holder.inputs[zero] = gs.Constant(f"{node.name}.weight_zero_point.u8", _unsigned(shift))
        done += 1
    return done


def _dequantizer(node: Any) -> Any:
    """DequantizeLinear of a stored weight whose multiplication has two dequantized operands, else None."""
    pair: list[Any] = [tensor.inputs[0] for tensor in node.inputs[:2] if tensor.inputs]
    quantized = len(pair) == 2 and all(producer.op == "DequantizeLinear" for producer in pair)
    return pair[1] if quantized else None


def _unsigned(codes: Any) -> Any:
    return np.asarray(codes.astype(np.int16) + CENTRE).astype(np.uint8)
