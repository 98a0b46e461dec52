"""Size of the products of INT8 linears on real data, which says what range codes of their own must cover.

Three small reductions beside each product return what is needed, so one run per batch measures every linear and no
product has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.inventory import GraphIndex
from export.names import DEQUANTIZE, in_encoder
from export.reading import read_onnx
from export.unoptimized import Array, open_unoptimized, run
from qdq.errors import PassError

KINDS = ("largest", "energy", "input", "shape")  # the reductions
AXES = "products.axes"


@dataclass(frozen=True)
class Product:
    """The product of one linear over some tokens, before ratio and bias.

    largest: largest magnitude of each channel [N]; energy: mean square of each channel [N]; input: mean squared norm of
    the token vectors [K] that it multiplies.
    """

    largest: NDArray[np.float64]
    energy: NDArray[np.float64]
    input: float


def measure_products(
    model_path: Path,
    feeds: Iterable[Mapping[str, Array]],
    progress: Callable[[int], None] | None = None,
) -> dict[str, Product]:
    """Measure the product of every INT8 linear of the encoder over all `feeds`, padding included.

    Args:
        model_path: the canonical graph; external data beside it.
        feeds: batches, each input name to int64 [B, S] (or [B, N, S]), encoded as for calibration.
        progress: called with the number of batches done.

    Returns the MatMul's name to its product, in graph order; nothing for a graph without such linears. Raises PassError
    when the graph cannot be read and when there are no batches; Unavailable without ONNX Runtime.
    """
    model = read_onnx(model_path, PassError)
    linears = list(_linears(model))
    if not linears:
        return {}
    # The reductions are the graph's outputs, in place of its own.
    outputs = _append_reductions(model.graph, linears)
    session = open_unoptimized(model.SerializeToString(), model_path.parent)
    found: dict[str, list[NDArray[np.float64]]] = {}
    done = 0
    for done, feed in enumerate(feeds, 1):
        for name, value in zip(outputs, run(session, feed, outputs), strict=True):
            found.setdefault(name, []).append(value.astype(np.float64))
        if progress is not None:
            progress(done)
    if not done:
        raise PassError("no batches to measure products on; give calibration text")
    return {node.name: _product(node.name, found) for node in linears}


def _linears(model: onnx.ModelProto) -> Iterator[NodeProto]:
    """Every MatMul of the encoder with an INT8 input and constant INT8 weights."""
    index = GraphIndex(model.graph)
    for node in model.graph.node:
        if node.op_type == "MatMul" and in_encoder(node.name) and index.dequantizer(node.input[0]) is not None:
            weight = index.producers.get(node.input[1])
            if weight is not None and weight.op_type == DEQUANTIZE and index.is_constant(node.input[1]):
                yield node


def _append_reductions(graph: onnx.GraphProto, linears: list[NodeProto]) -> list[str]:
    """Make the graph return the reductions of every linear alone; returns their names, KINDS of one after the other."""
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), AXES))
    del graph.output[:]
    for node in linears:
        graph.node.extend(_reductions(node))
        for kind in KINDS:
            element = TensorProto.INT64 if kind == "shape" else TensorProto.FLOAT
            graph.output.append(helper.make_tensor_value_info(_name(kind, node.name), element, None))
    return [output.name for output in graph.output]


def _reductions(node: NodeProto) -> Iterator[NodeProto]:
    """Reductions over the tokens, which are every axis but the last."""

    def make(op: str, inputs: list[str], kind: str, **attributes: Any) -> NodeProto:
        return helper.make_node(op, inputs, [_name(kind, node.name)], **attributes)

    flat, tokens, magnitudes = (_name(kind, node.name) for kind in ("flat", "tokens", "magnitudes"))
    yield make("Flatten", [node.output[0]], "flat", axis=-1)  # [tokens, N]
    yield make("Flatten", [node.input[0]], "tokens", axis=-1)  # [tokens, K]
    yield make("Abs", [flat], "magnitudes")
    yield make("ReduceMax", [magnitudes, AXES], "largest", keepdims=0)
    yield make("ReduceSumSquare", [flat, AXES], "energy", keepdims=0)
    yield make("ReduceSumSquare", [tokens], "input", keepdims=0)
    yield make("Shape", [tokens], "shape")


def _name(kind: str, node: str) -> str:
    return f"products.{kind}.{node}"


def _product(node: str, found: Mapping[str, list[NDArray[np.float64]]]) -> Product:
    """Put the reductions of all batches together."""
    largest, energy, squares, shapes = (np.array(found[_name(kind, node)]) for kind in KINDS)
    tokens = shapes[:, 0].sum()
    return Product(largest.max(axis=0), energy.sum(axis=0) / tokens, float(squares.sum() / tokens))
