"""Pass: symmetric s8 activations re-coded as u8 with zero-point 128; every dequantized value stays the same."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from export.names import DEQUANTIZE, QUANTIZE
from export.passes.base import Declined, PassResult


def recode_unsigned(graph: gs.Graph) -> PassResult:
    """Recode activations.

    Before: ``Q(zero-point int8 0) -> DQ(zero-point int8 0)``, codes in -128..127.
    After: ``Q(zero-point uint8 128) -> DQ(zero-point uint8 128)``, codes in 0..255; 128 + code, nothing else changes.
    Leaves alone: weights (a DQ on an initializer), and a Q whose codes are read by anything but a DQ (declined).
    """
    changed: list[str] = []
    declined: list[Declined] = []
    for quantize in [node for node in graph.nodes if node.op == QUANTIZE]:
        zero = quantize.inputs[2]
        if not isinstance(zero, gs.Constant) or zero.values.dtype != np.int8 or bool(zero.values.any()):
            continue
        readers = list(quantize.outputs[0].outputs)
        strangers = [node.name for node in readers if node.op != DEQUANTIZE]
        if strangers:
            declined.append(Declined(quantize.name, f"its codes are read by {strangers[0]}, not only dequantized"))
            continue
        unsigned = gs.Constant(f"{quantize.name.removesuffix('.quantize')}.zero_point_u8", np.array(128, np.uint8))
        for node in (quantize, *readers):
            node.inputs[2] = unsigned
        quantize.outputs[0].dtype = np.uint8
        changed.append(quantize.name)
    return PassResult(tuple(changed), tuple(declined))
