"""Linears with INT8 weights in a graph under change: the product, the DequantizeLinear of its weights, their values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from export.names import DEQUANTIZE

PLAIN = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}  # attributes with which a Gemm is MatMul and Add


@dataclass(frozen=True)
class QuantizedLinear:
    """``MatMul(x, DequantizeLinear(codes [K, N], scale))``, or a plain Gemm, which may add a bias; x is any tensor."""

    node: gs.Node
    weight: gs.Node  # the DequantizeLinear

    @property
    def input(self) -> gs.Tensor:
        """The first factor."""
        return self.node.inputs[0]

    @property
    def codes(self) -> NDArray[np.int8]:
        """INT8 weights [K, N]."""
        return np.asarray(self.weight.inputs[0].values)

    @property
    def scales(self) -> NDArray[np.floating]:
        """A scale per output channel [N], or one for all of them []; in the type the product is computed in."""
        return np.asarray(self.weight.inputs[1].values)

    @property
    def input_scale(self) -> float | None:
        """Scale of the first factor's own DequantizeLinear; None where it is float or its scale is computed."""
        maker = self.input.inputs[0] if self.input.inputs else None
        if maker is None or maker.op != DEQUANTIZE or not isinstance(maker.inputs[1], gs.Constant):
            return None
        scale = np.asarray(maker.inputs[1].values)
        return float(scale.item()) if scale.size == 1 else None


def quantized_linear(node: gs.Node) -> QuantizedLinear | None:
    """The linear a node is; None unless its second factor is [K, N] INT8 codes with a scale per column or one for all.

    Weights with a zero-point other than 0, with scales along K or by blocks, and those behind a QuantizeLinear or a
    layout operator are none; nor is a Gemm that transposes or scales.
    """
    if node.op not in ("MatMul", "Gemm") or any(node.attrs.get(name, plain) != plain for name, plain in PLAIN.items()):
        return None
    weight = node.inputs[1].inputs[0] if node.inputs[1].inputs else None
    if weight is None or weight.op != DEQUANTIZE or not all(isinstance(t, gs.Constant) for t in weight.inputs):
        return None
    codes, scale, *zero = (np.asarray(tensor.values) for tensor in weight.inputs)
    along_n = scale.ndim == 0 or (scale.shape == codes.shape[1:] and weight.attrs.get("axis", 1) in (1, -1))
    symmetric = codes.dtype == np.int8 and not any(item.any() for item in zero)
    return QuantizedLinear(node, weight) if codes.ndim == 2 and along_n and symmetric else None
