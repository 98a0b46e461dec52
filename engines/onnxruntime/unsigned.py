"""Weights for a CPU that adds s8 products in saturating pairs: u8 codes around 128, or s8 codes whose pairs fit.

ONNX Runtime multiplies u8 by u8 exactly on every CPU: without VNNI it widens both to INT16 and sums in INT32. That
takes longer than its s8 kernel, which is as exact for weights that fit (`engines.fitting`); those are coarser, some
hardly. So a linear whose rounding errors grow little is fitted, and every other one is u8 (docs/performance.md).

The session option ``session.x64quantprecision`` makes ONNX Runtime recode weights to u8 when it loads a graph; written
into the graph it holds for every reader, and Triton's backend passes that option on to nobody (src/onnxruntime.cc of
github.com/triton-inference-server/onnxruntime_backend knows a fixed list of parameters). With VNNI the u8 kernel takes
about twice the time of the s8 one, and the option would choose it there, too: ONNX Runtime 1.31 compares the two tables
of kernels (``MlasPlatformU8S8Overflow``), which differ on every CPU with AVX2. So neither is used where sums are exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engines.fitting import fitting_weights

# Operator -> places of its weight and of that weight's zero-point.
PLACES = {"MatMulIntegerToFloat": (1, 5), "DynamicQuantizeMatMul": (1, 3), "MatMulInteger": (1, 3)}
CENTRE = 128
FITTED = "MatMulIntegerToFloat"  # operator whose weights may be fitted, and the place of their scales
SCALES = 3
MOST_GROWTH = 1.25  # of the mean square of a fitted weight's rounding errors; beyond it is u8


def safe_weights(graph: Any) -> dict[str, int]:
    """Recode the s8 weights of INT8 multiplications in a graphsurgeon graph, in place.

    Returns numbers of multiplications, ``u8`` and ``fitted``. A product with u8 weights stays what it is: code and
    zero-point move together. Weights whose other operand is float are left alone, because those multiply floats; so is
    what is u8 already.
    """
    import onnx_graphsurgeon as gs

    recoded: dict[int, Any] = {}  # id of a weight's codes -> the u8 constant
    done = {"u8": 0, "fitted": 0}
    for node in [node for node in graph.nodes if node.op in PLACES or node.op in ("MatMul", "Gemm")]:
        holder, (codes, zero) = (node, PLACES[node.op]) if node.op in PLACES else (_dequantizer(node), (0, 2))
        if holder is None or not isinstance(holder.inputs[codes], gs.Constant):
            continue
        weight = holder.inputs[codes]
        if weight.values.dtype != np.int8:
            continue
        if node.op == FITTED and _fit(node, weight):
            done["fitted"] += 1
            continue
        holder.inputs += [gs.Variable.empty()] * (zero + 1 - len(holder.inputs))
        old = holder.inputs[zero]
        shift = old.values if isinstance(old, gs.Constant) else np.zeros((), np.int8)
        if id(weight) not in recoded:
            recoded[id(weight)] = gs.Constant(f"{weight.name}.u8", _unsigned(weight.values))
        holder.inputs[codes] = recoded[id(weight)]
        holder.inputs[zero] = gs.Constant(f"{node.name}.weight_zero_point.u8", _unsigned(shift))
        done["u8"] += 1
    return done


def _fit(node: Any, weight: Any) -> bool:
    """Give a multiplication weights that fit, unless they would be much coarser."""
    import onnx_graphsurgeon as gs

    scales = node.inputs[SCALES]
    if weight.values.ndim != 2 or not isinstance(scales, gs.Constant):
        return False
    codes, growth = fitting_weights(weight.values, shared=scales.values.size == 1)
    if (growth**2).mean() > MOST_GROWTH:
        return False
    grown = scales.values * growth[: scales.values.size].reshape(scales.values.shape)
    node.inputs[PLACES[FITTED][0]] = gs.Constant(f"{node.name}.weight.fit", codes)
    node.inputs[SCALES] = gs.Constant(f"{node.name}.scale.fit", np.asarray(grown, scales.values.dtype))
    return True


def _dequantizer(node: Any) -> Any:
    """DequantizeLinear of a stored weight whose multiplication has two dequantized operands, else None."""
    pair: list[Any] = [tensor.inputs[0] for tensor in node.inputs[:2] if tensor.inputs]
    quantized = len(pair) == 2 and all(producer.op == "DequantizeLinear" for producer in pair)
    return pair[1] if quantized else None


def _unsigned(codes: Any) -> Any:
    return np.asarray(codes.astype(np.int16) + CENTRE).astype(np.uint8)
