"""The fusion map with points taken away, without another export: the value of a placement to TensorRT.

    layers = fusion_map(model)                     # every layer as predicted for the graph as it is
    layers_without(model, [point, other])          # ... when these points are taken away together
    broken_fusions(model, points)[point]           # the layers that change when this one alone is taken away

`model` is a canonical graph, or one lowered from it; points are named as in placement.json. A point that shares its
pair with others (q, k, v and the residual beside them read one Q) is taken from its own reader only. Like the fusion
map this predicts; nothing is built.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import onnx
from onnx import NodeProto, TensorProto
from onnx.numpy_helper import from_array, to_array

from export.inventory import LAYOUT, GraphIndex
from export.lint.fusion import FusedLayer, fusion_map
from export.lint.graph import without_weights
from export.lint.limits import MIN_SM
from export.names import DEQUANTIZE, QUANTIZE, consumers
from export.reading import attribute
from qdq.errors import ConfigError


def broken_fusions(
    model: onnx.ModelProto, points: Iterable[str], sm: int = MIN_SM, sequence: int = 128
) -> Mapping[str, tuple[FusedLayer, ...]]:
    """Find, for each of `points`, the layers that change when it alone is taken away; their `reason` says why.

    A layer has changed when its `kind` or `precision` has; `fusion_map` has it as it was, under the same name. Weights
    in external files need not be loaded. Raises ConfigError naming a point that quantizes nothing in this graph.
    """
    light = without_weights(model)
    whole = {layer.name: layer for layer in fusion_map(light, sm, sequence)}

    def changed(layer: FusedLayer) -> bool:
        before = whole.get(layer.name)
        return before is None or (before.kind, before.precision) != (layer.kind, layer.precision)

    return {point: tuple(filter(changed, layers_without(light, (point,), sm, sequence))) for point in points}


def layers_without(
    model: onnx.ModelProto, points: Collection[str], sm: int = MIN_SM, sequence: int = 128
) -> tuple[FusedLayer, ...]:
    """Predict the fusion map of `model` without any of `points`. Raises ConfigError as `broken_fusions` does."""
    return fusion_map(without_points(without_weights(model), points), sm, sequence)


def without_points(model: onnx.ModelProto, points: Collection[str]) -> onnx.ModelProto:
    """Return a copy whose readers of `points` take the float tensor, or the dequantized weight (without data where the
    codes have none). Raises ConfigError as `broken_fusions` does.
    """
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    graph = edited.graph
    index = GraphIndex(graph)
    for point in points:
        found = [(node, i) for node, i in consumers(graph.node, point) if index.to_operand(node, i)[1] is not None]
        if not found:
            raise ConfigError(f"{point}: quantizes nothing in this graph; take a point that placement.json has placed")
        for node, operand in found:
            node.input[operand] = _bypass(graph, index, index.to_operand(node, operand), f"{node.name}.float_{operand}")
    _remove_unread(graph)
    return edited


def _bypass(
    graph: onnx.GraphProto, index: GraphIndex, route: tuple[list[NodeProto], NodeProto | None], name: str
) -> str:
    """The float tensor to read instead of an operand, moved by copies of the ops on its `route`; others keep theirs."""
    layout, dequantize = route
    assert dequantize is not None  # the caller has found one
    quantize = index.producers.get(dequantize.input[0])
    tensor = quantize.input[0] if quantize is not None else _float_weight(graph, index, dequantize, name)
    for number, node in enumerate(reversed(layout)):
        copy = graph.node.add()
        copy.CopyFrom(node)
        copy.name = f"{name}_{number}"
        copy.input[0], copy.output[0] = tensor, copy.name
        tensor = copy.name
    return tensor


def _float_weight(graph: onnx.GraphProto, index: GraphIndex, dequantize: NodeProto, name: str) -> str:
    codes, scale = (index.initializers[tensor] for tensor in dequantize.input[:2])
    weight = TensorProto(name=name, dims=codes.dims, data_type=scale.data_type)
    if codes.raw_data:
        axis = attribute(dequantize, "axis", 1)
        factors = to_array(scale)
        factors = factors.reshape([-1 if i == axis else 1 for i in range(len(codes.dims))]) if factors.ndim else factors
        weight = from_array(to_array(codes).astype(factors.dtype) * factors, name)
    graph.initializer.append(weight)
    return name


def _remove_unread(graph: onnx.GraphProto) -> None:
    """Remove pairs that nothing reads any more, and the layout ops behind them."""
    outputs = {value.name for value in graph.output}
    while True:
        read = outputs | {tensor for node in graph.node for tensor in node.input}
        unread = [
            node
            for node in graph.node
            if node.op_type in {QUANTIZE, DEQUANTIZE, *LAYOUT} and read.isdisjoint(node.output)
        ]
        if not unread:
            return
        for node in unread:
            graph.node.remove(node)
