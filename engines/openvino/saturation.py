"""A graph for a CPU whose INT8 products are added in pairs that saturate: no pair of it can.

OpenVINO has no switch for that and no other kernel, with u8 activations or s8 ones (it shifts those to u8). So the
graph itself must be safe. A linear stays INT8 with weights that fit: two neighbouring inputs of one output, whose
products are added first, sum up to at most 128 where their signs agree, because 255 x 128 is below INT16's end. Where
they do not, the output's scale grows until they do, which costs its weights up to one bit (NNCF's ``overflow_fix``
always takes that bit). Products of two activations cannot be made to fit: their quantizers are taken out.

Checked with the kernels of AVX2 and SSE: pairs are inputs 2i and 2i + 1. oneDNN blocks inputs by four everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engines.fitting import fitting_weights

LAYOUT = ("Transpose", "Reshape")  # between a pair of quantizers and the multiplication


def fit_products(lowered: Path) -> tuple[Any, dict[str, Any]]:
    """Return a lowered file's ModelProto whose INT8 products fit, and the object that build.json says so with.

    Its counts: linears in INT8, those of their weights whose scales grew with the largest growth, and products whose
    operands are floats now.
    """
    import onnx
    import onnx_graphsurgeon as gs

    model = onnx.load(lowered)
    graph = gs.import_onnx(model)
    fitted: dict[str, float] = {}  # DequantizeLinear of a weight -> largest growth of its scales
    linears, floats = 0, []
    for node in [node for node in graph.nodes if node.op in ("MatMul", "Gemm")]:
        chains = [_chain(tensor) for tensor in node.inputs[:2]]
        if len(chains) != 2 or not all(chains):
            continue  # multiplies floats already
        weight = chains[1][-1]
        if len(chains[1]) == 1 and isinstance(weight.inputs[0], gs.Constant) and _has_columns(weight):
            if weight.name not in fitted:
                fitted[weight.name] = _fit(weight)
            linears += 1
        else:
            _take_out(node, chains)
            floats.append(node.name)
    graph.cleanup()
    fit = gs.export_onnx(graph)
    fit.ir_version = model.ir_version
    del fit.graph.value_info[:]
    grown = [growth for growth in fitted.values() if growth > 1]
    return fit, {
        "linears": linears,
        "grown": len(grown),
        "largest_growth": round(max(grown, default=1.0), 4),
        "float_products": floats,
    }


def _chain(tensor: Any) -> list[Any]:
    """Nodes from an operand up to the DequantizeLinear it comes from; empty for another source."""
    nodes: list[Any] = []
    while tensor.inputs:
        nodes.append(tensor.inputs[0])
        if nodes[-1].op == "DequantizeLinear":
            return nodes
        if nodes[-1].op not in LAYOUT:
            break
        tensor = nodes[-1].inputs[0]
    return []


def _has_columns(weight: Any) -> bool:
    """True for s8 codes [in, out] around 0 with one scale per output or for all."""
    codes, scale = weight.inputs[0].values, weight.inputs[1].values
    zero = weight.inputs[2].values if len(weight.inputs) > 2 else np.ones(1)
    columns = scale.size == 1 or (weight.attrs.get("axis", 1) in (1, -1) and scale.shape == codes.shape[1:])
    return bool(codes.ndim == 2 and codes.dtype == np.int8 and not zero.any() and columns)


def _fit(weight: Any) -> float:
    """Give a weight's DequantizeLinear codes that fit and the scales that go with them; the largest growth."""
    import onnx_graphsurgeon as gs

    codes, scale = weight.inputs[:2]
    fitted, growth = fitting_weights(codes.values, shared=scale.values.size == 1)
    if (growth == 1).all():
        return 1.0
    scales = scale.values * growth[: scale.values.size].reshape(scale.values.shape)
    weight.inputs[0] = gs.Constant(f"{codes.name}.fit", fitted)
    weight.inputs[1] = gs.Constant(f"{scale.name}.fit", np.asarray(scales, scale.values.dtype))
    return float(growth.max())


def _take_out(node: Any, chains: list[list[Any]]) -> None:
    """Feed a multiplication what its quantizers take."""
    for index, chain in enumerate(chains):
        quantize = chain[-1].inputs[0].inputs
        if quantize and quantize[0].op == "QuantizeLinear":
            (chain[-2] if len(chain) > 1 else node).inputs[0 if len(chain) > 1 else index] = quantize[0].inputs[0]
