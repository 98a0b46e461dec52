"""Pass: symmetric s8 activations re-coded as u8 with zero-point 128; every dequantized value stays the same."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from export.names import DEQUANTIZE, QUANTIZE
from export.passes.base import Declined, PassResult


def recode_unsigned(graph: gs.Graph, linears_only: bool = False) -> PassResult:
    """Recode activations; with `linears_only` those that nothing but multiplications by weights read.

    Before: ``Q(zero-point int8 0) -> DQ(zero-point int8 0)``, codes in -128..127.
    After: ``Q(zero-point uint8 128) -> DQ(zero-point uint8 128)``, codes in 0..255; 128 + code, nothing else changes.
    Leaves alone: weights (a Q or DQ on an initializer), what is unsigned already or outside `linears_only`, and,
    declined with the reason, a Q whose zero-point is not 0 and one whose codes are read by anything but such a DQ.
    """
    changed: list[str] = []
    declined: list[Declined] = []
    for quantize in [node for node in graph.nodes if node.op == QUANTIZE]:
        zero = _zero_point(quantize)
        if isinstance(quantize.inputs[0], gs.Constant) or zero is None or zero.dtype != np.int8:
            continue
        if linears_only and not _feeds_linears(quantize):
            continue
        if reason := _obstacle(graph, quantize, zero):
            declined.append(Declined(quantize.name, reason))
            continue
        name = f"{quantize.name.removesuffix('.quantize')}.zero_point_u8"
        unsigned = gs.Constant(name, np.full(zero.shape, 128, np.uint8))
        for node in (quantize, *quantize.outputs[0].outputs):
            node.inputs[2] = unsigned
        quantize.outputs[0].dtype = np.uint8
        changed.append(quantize.name)
    return PassResult(tuple(changed), tuple(declined))


def _feeds_linears(quantize: gs.Node) -> bool:
    """Return whether everything computed from the codes is a product with a constant second factor."""
    readers = [reader for dequantize in quantize.outputs[0].outputs for reader in dequantize.outputs[0].outputs]
    return bool(readers) and all(
        reader.op in ("MatMul", "Gemm") and _is_constant(reader.inputs[1]) for reader in readers
    )


def _is_constant(tensor: gs.Tensor) -> bool:
    """Return whether a tensor is a constant, or one behind a DequantizeLinear or a layout node."""
    while tensor.inputs and tensor.inputs[0].op in (DEQUANTIZE, QUANTIZE, "Transpose", "Cast"):
        tensor = tensor.inputs[0].inputs[0]
    return isinstance(tensor, gs.Constant)


def _zero_point(node: gs.Node) -> np.ndarray | None:
    """Value of a constant zero-point; None for an absent one, which means uint8 0."""
    tensor = node.inputs[2] if len(node.inputs) > 2 else None
    return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None


def _obstacle(graph: gs.Graph, quantize: gs.Node, zero: np.ndarray) -> str | None:
    """Return the reason why an s8 QuantizeLinear has to stay one; None when it need not."""
    if zero.any():
        return "its zero-point is not 0"
    codes = quantize.outputs[0]
    if any(codes is output for output in graph.outputs):
        return "its codes are an output of the graph"
    for reader in codes.outputs:
        if reader.op != DEQUANTIZE:
            return f"its codes are read by {reader.name}, not only dequantized"
        behind = _zero_point(reader)
        if behind is None or behind.dtype != np.int8 or behind.any():
            return f"{reader.name} dequantizes with another zero-point"
    return None
