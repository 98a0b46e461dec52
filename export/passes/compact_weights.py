"""Pass: large tables and weights that are still float stored as INT8 codes with a scale per row."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from export.names import CODES, DEQUANTIZE, SCALE, ZERO_POINT
from export.passes.base import Declined, PassResult

SMALLEST = 2**16  # elements: below it the file hardly shrinks
LARGEST_CODE = 127


def compact_weights(graph: gs.Graph) -> PassResult:
    """Store what is large and float in a quarter of the bytes.

    Before: ``table[V,H] float -> Gather(ids)``, and ``Gemm(x, weight[N,K] float, transB=1)``.
    After: ``codes int8 -> DequantizeLinear(axis 0) -> Gather``, which gather_codes then turns around, and the same in
    front of the Gemm, whose kernel reads the codes.
    A stored value moves by at most half its row's scale, which is the row's largest magnitude / 127.
    Leaves alone: tables and weights below SMALLEST elements and, declined with the reason, those that other nodes read.
    """
    changed: list[str] = []
    declined: list[Declined] = []
    for node in list(graph.nodes):
        position = {"Gather": 0, "Gemm": 1}.get(node.op)
        if position is None or not _large_matrix(node.inputs[position]):
            continue
        weight = node.inputs[position]
        if len(weight.outputs) > 1:
            declined.append(Declined(node.name, f"'{weight.name}' is also read by other nodes"))
        elif node.attrs.get("axis", 0) == 0 and node.attrs.get("transB", 1):
            _store_codes(graph, node, position)
            changed.append(node.name)
    return PassResult(tuple(changed), tuple(declined))


def _large_matrix(tensor: gs.Tensor) -> bool:
    if not isinstance(tensor, gs.Constant) or tensor.dtype != np.float32:
        return False
    return len(tensor.shape) == 2 and int(np.prod(tensor.shape)) >= SMALLEST


def row_codes(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Compute symmetric INT8 codes of a matrix [R, C] and a scale per row [R]; an all-zero row gets scale 1.

    Scales are rounded to what FP16 holds without loss, so that `gather_codes` can store them so.
    """
    scales = np.abs(values).max(axis=1) / np.float32(LARGEST_CODE)
    scales[scales == 0] = 1
    half = np.minimum(scales, np.finfo(np.float16).max).astype(np.float16).astype(np.float32)
    scales = np.where(half >= np.finfo(np.float16).smallest_normal, half, scales)
    codes = np.clip(np.rint(values / scales[:, None]), -LARGEST_CODE, LARGEST_CODE)
    return codes.astype(np.int8), scales.astype(np.float32)


def _store_codes(graph: gs.Graph, reader: gs.Node, position: int) -> None:
    weight = reader.inputs[position]
    codes, scales = row_codes(weight.values)
    values = gs.Variable(f"{weight.name}.dequantize", dtype=np.dtype(np.float32))
    inputs = [
        gs.Constant(f"{weight.name}{CODES}", codes),
        gs.Constant(f"{weight.name}{SCALE}", scales),
        gs.Constant(f"{weight.name}{ZERO_POINT}", np.zeros_like(scales, np.int8)),
    ]
    graph.nodes.append(gs.Node(DEQUANTIZE, f"{weight.name}.dequantize", {"axis": 0}, inputs, [values]))
    reader.inputs[position] = values
