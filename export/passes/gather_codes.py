"""Pass: an INT8 embedding table is dequantized after the rows are looked up, not as a whole before."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from export.names import CODES, DEQUANTIZE, SCALE
from export.passes.base import Declined, PassResult
from qdq.errors import PassError

GATHER = "Gather"


def gather_codes(graph: gs.Graph) -> PassResult:
    """Look rows up as INT8 codes.

    Before: ``codes [V, H], scale [V] -> DQ(axis 0) -> Gather(ids)``.
    After: ``codes -> Gather(ids) -> DQ(scale 1) -> Mul`` with ``scale [V, 1] -> Gather(ids)``: DequantizeLinear takes
    one scale per index of an axis, and looked-up rows have one per position instead. Scales that FP16 holds exactly are
    stored so and cast after the look-up. The same products, to the bit.
    Leaves alone: every other weight, and, declined with the reason, a table that something else than Gather reads.
    """
    unit = gs.Constant("embedding_tables.one", np.array(1, np.float32))
    zero = gs.Constant("embedding_tables.zero", np.array(0, np.int8))
    changed: list[str] = []
    declined: list[Declined] = []
    for dequantize in [node for node in graph.nodes if _is_table(node)]:
        others = [node.name for node in dequantize.outputs[0].outputs if not _looks_up(node, dequantize)]
        if others:
            declined.append(Declined(dequantize.name, f"{others[0]} reads the whole table"))
            continue
        codes, scale = dequantize.inputs[0], dequantize.inputs[1]
        rows = gs.Constant(f"{codes.name.removesuffix(CODES)}.row{SCALE}", _narrowest(scale.values).reshape(-1, 1))
        for gather in list(dequantize.outputs[0].outputs):
            graph.nodes += _by_row(gather, codes, rows, (unit, zero))
            gather.outputs = []
            changed.append(gather.name)
        dequantize.outputs.clear()
    return PassResult(tuple(changed), tuple(declined))


def float_tables(graph: gs.Graph) -> PassResult:
    """Give a target without INT8 look-ups the dequantized table.

    Before: ``codes [V, H], scale [V] -> DQ(axis 0) -> Gather(ids)``. After: ``table [V, H] -> Gather(ids)``, the same
    values. Leaves alone: every other weight.
    """
    changed: list[str] = []
    for dequantize in [node for node in graph.nodes if _is_table(node)]:
        codes, scale = (np.asarray(tensor.values) for tensor in dequantize.inputs[:2])
        name = dequantize.inputs[0].name.removesuffix(CODES)
        table = gs.Constant(f"{name}.values", codes.astype(np.float32) * scale[:, None])
        for reader in list(dequantize.outputs[0].outputs):
            reader.inputs = [table if tensor is dequantize.outputs[0] else tensor for tensor in reader.inputs]
        dequantize.outputs.clear()
        changed.append(dequantize.name)
    return PassResult(tuple(changed))


def _is_table(node: gs.Node) -> bool:
    """A DequantizeLinear of INT8 rows that some Gather reads."""
    if node.op != DEQUANTIZE or not isinstance(node.inputs[0], gs.Constant):
        return False
    readers = node.outputs[0].outputs
    if not any(_looks_up(reader, node) for reader in readers):
        return False
    if node.attrs.get("axis", 1) != 0 or not isinstance(node.inputs[1], gs.Constant):
        raise PassError(f"{node.name}: an embedding table needs one constant scale per row (axis 0); export it again")
    return True


def _looks_up(node: gs.Node, dequantize: gs.Node) -> bool:
    return node.op == GATHER and node.attrs.get("axis", 0) == 0 and node.inputs[0] is dequantize.outputs[0]


def _narrowest(scales: NDArray[np.float32]) -> NDArray[Any]:
    half = np.clip(scales, 0, np.finfo(np.float16).max).astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), scales) else np.asarray(scales)


def _by_row(
    gather: gs.Node, codes: gs.Constant, rows: gs.Constant, plain: tuple[gs.Constant, gs.Constant]
) -> list[gs.Node]:
    """Gather of the codes, DQ with the `plain` scale and zero-point, and the product with the gathered scales."""
    ids, result = gather.inputs[1], gather.outputs[0]
    looked_up = gs.Variable(f"{gather.name}.codes", dtype=np.dtype(np.int8))
    values = gs.Variable(f"{gather.name}.dequantize", dtype=np.dtype(np.float32))
    scales = gs.Variable(f"{gather.name}.scales", dtype=np.dtype(np.float32))
    stored = gs.Variable(f"{gather.name}.stored_scales", dtype=rows.dtype)
    return [
        gs.Node(GATHER, looked_up.name, {"axis": 0}, [codes, ids], [looked_up]),
        gs.Node(GATHER, stored.name, {"axis": 0}, [rows, ids], [stored]),
        gs.Node("Cast", scales.name, {"to": onnx.TensorProto.FLOAT}, [stored], [scales]),
        gs.Node(DEQUANTIZE, values.name, {}, [looked_up, *plain], [values]),
        gs.Node("Mul", f"{gather.name}.rows", {}, [values, scales], [result]),
    ]
