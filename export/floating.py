"""The FP32 graph from that of the quantized module, so that a model is recorded or traced once.

What quantization put there is bypassed: every QuantizeLinear/DequantizeLinear pair, the multiplication of a smoothed
input, and what scales a residual add. Parameters are the floating-point model's own, by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from export.names import PAIR, QUANTIZE
from qdq.errors import ExportError

Parameters = Mapping[str, "NDArray[Any]"]
FACTORS = ("._smoothing", "._channel_scale")  # names of the buffers that treatments add to the graph


def without_quantizers(traced: ir.Model, parameters: Parameters, clean: Callable[[ir.Model], object]) -> ir.Model:
    """Copy `traced` (unoptimized: parameters still named) as a graph that computes in floating point with `parameters`.

    `clean` folds constants in place, as it will in `traced`.

    Raises ExportError when a parameter has another shape there, or a quantizer is left.
    """
    # Quantizers and factors, bypassed
    model = traced.clone()
    graph = model.graph
    for node in list(graph):
        if node.op_type == QUANTIZE:
            for dequantize, _ in list(node.outputs[0].uses()):
                _bypass(graph, dequantize, node.inputs[0])
            graph.remove(node, safe=True)
        elif node.op_type in ("Mul", "Div") and any(_is_factor(value) for value in node.inputs):
            _bypass(graph, node, next(value for value in node.inputs if not _is_factor(value)))
    # The floating-point model's parameters in place of the quantized one's
    for name, value in list(graph.initializers.items()):
        if value.uses() and name in parameters:
            array = parameters[name]
            if value.shape is not None and tuple(value.shape) != array.shape:
                raise ExportError(
                    f"{name}: {array.shape} in the floating-point model, {value.shape} in the quantized one"
                )
            value.const_value = ir.tensor(array, name=name)
    clean(model)
    left = [str(node.name) for node in graph if node.op_type in PAIR]
    if left:
        raise ExportError(f"{left[0]}: stays in the floating-point graph; this is an error of ours, please report it")
    return model


def _is_factor(value: ir.Value | None) -> bool:
    return value is not None and str(value.name).endswith(FACTORS)


def _bypass(graph: ir.Graph, node: ir.Node, source: ir.Value | None) -> None:
    if source is None:
        raise ExportError(f"{node.name}: reads nothing; this is an error of ours, please report it")
    ir.convenience.replace_all_uses_with(node.outputs[0], source)
    graph.remove(node, safe=True)
