"""A graph executed one node at a time, so that every tensor has exactly the type written: the cost of FP16 per node.

ONNX Runtime's CPU provider has FP16 kernels for part of the operators. It puts casts around the others and removes
casts that meet, so within one session whole chains stay FP32 and round less than a GPU would. A session per node cannot
do that: every result is rounded to its type. Sums inside a node are still a CPU's; this proves types, constants and
ranges, not a GPU's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.names import IR_VERSION, OPSET
from export.reading import read_onnx
from export.unoptimized import Array, open_unoptimized, run
from qdq.errors import ParityError

Observer = Callable[[NodeProto, Mapping[str, Array], Mapping[str, Array]], None]  # a node, its inputs, its outputs


class NodeByNode:
    """A graph's interpreter; call it with one batch of feeds, typed as the graph's inputs, for the graph's outputs.

    Raises ParityError when the graph or a node cannot be loaded, a feed is missing, or an FP16 result overflows or is
    NaN; Unavailable without ONNX Runtime.
    """

    def __init__(self, model_path: Path) -> None:
        self._graph = read_onnx(model_path, ParityError).graph
        folder = str(model_path.parent)
        self._constants = {t.name: numpy_helper.to_array(t, folder) for t in self._graph.initializer}
        self._last_reader = {name: node.name for node in self._graph.node for name in node.input}
        self._session = cache(_open_node)

    def __call__(self, feeds: Mapping[str, Array], observe: Observer | None = None) -> dict[str, Array]:
        """Outputs by name, in the types the graph states; `observe` sees every node as it has run."""
        missing = [value.name for value in self._graph.input if value.name not in feeds]
        if missing:
            raise ParityError(f"the batch lacks input(s) {', '.join(missing)} of the graph; encode it for this model")
        values = {**self._constants, **{value.name: feeds[value.name] for value in self._graph.input}}
        wanted = [value.name for value in self._graph.output]
        for node in self._graph.node:
            inputs = {name: values[name] for name in node.input if name}
            outputs = self.alone(node, inputs)
            for name, value in outputs.items():
                # An FP32 infinity is the graph's own, such as the logarithm of a 0 that a Where discards.
                if value.dtype == np.float16 and not np.isfinite(value).all():
                    raise ParityError(
                        f"{node.name}: its FP16 result '{name}' overflows or is NaN; measure ranges on such text"
                    )
            values.update(outputs)
            if observe is not None:
                observe(node, inputs, outputs)
            for name in inputs:
                if self._last_reader[name] == node.name and name not in wanted:
                    values.pop(name, None)
        return {name: values[name] for name in wanted}

    def alone(self, node: NodeProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Results of one node, in the types its inputs imply."""
        types = tuple((helper.np_dtype_to_tensor_dtype(array.dtype), array.ndim) for array in inputs.values())
        feeds = {f"i{index}": array for index, array in enumerate(inputs.values())}
        places = {name: f"i{index}" for index, name in enumerate(inputs)}
        results = [f"o{index}" if name else "" for index, name in enumerate(node.output)]
        alike = helper.make_node(node.op_type, [places.get(name, "") for name in node.input], results)
        alike.attribute.extend(node.attribute)
        session = self._session(alike.SerializeToString(), types)
        names = [name for name in node.output if name]
        return dict(zip(names, run(session, feeds, [name for name in results if name]), strict=True))


def _open_node(serialized: bytes, inputs: tuple[tuple[int, int], ...]) -> Any:
    """Open a session for nodes of this operator, these attributes and (type, rank) of inputs; sizes are dynamic."""
    node = onnx.NodeProto.FromString(serialized)
    values = [helper.make_tensor_value_info(f"i{i}", kind, [None] * rank) for i, (kind, rank) in enumerate(inputs)]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "node", values, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return open_unoptimized(model.SerializeToString(), Path())


@dataclass(frozen=True)
class NodeError:
    """Largest difference of a node's FP16 result from the FP32 one, in units in the last place of FP16."""

    node: str
    op: str
    ulp: float
    largest: float  # |x| of the result


def node_errors(model_path: Path, feeds: Mapping[str, Array]) -> list[NodeError]:
    """Every node with an FP16 result against the same node in FP32 on identical inputs, in graph order.

    `feeds`: one batch as the graph's inputs want it. Raises as NodeByNode.
    """
    interpreter = NodeByNode(model_path)
    errors: list[NodeError] = []

    def compare(node: NodeProto, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        half = outputs[node.output[0]]
        if half.dtype == np.float16:
            widened = {name: _widened(array) for name, array in inputs.items()}
            errors.append(_error(node, half, interpreter.alone(_in_fp32(node), widened)[node.output[0]]))

    interpreter(feeds, compare)
    return errors


def _error(node: NodeProto, half: Array, wide: Array) -> NodeError:
    ulp = np.spacing(np.abs(wide).astype(np.float16)).astype(np.float64)
    apart = np.abs(half.astype(np.float64) - wide.astype(np.float64)) / ulp
    return NodeError(node.name, node.op_type, float(apart.max(initial=0.0)), float(np.abs(wide).max(initial=0.0)))


def _widened(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _in_fp32(node: NodeProto) -> NodeProto:
    """The node with FP32 where an attribute says FP16."""
    wide = onnx.NodeProto()
    wide.CopyFrom(node)
    for attribute in wide.attribute:
        if attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
        elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
            attribute.t.CopyFrom(numpy_helper.from_array(_widened(numpy_helper.to_array(attribute.t))))
    return wide
