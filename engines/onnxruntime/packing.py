"""A packed engine without its packing, for batches in which hardly anything is padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engines.interface import read_model
from qdq.base.packing import KEPT, PACK, PADS, PLACES, SPREAD


def is_packed(model: Any) -> bool:
    """True for a ModelProto that packs the tokens of a batch (`qdq.base.packing`)."""
    return any(node.name == PLACES for node in model.graph.node)


def without_packing(engine: Path) -> bytes | None:
    """The model of a packed engine file with every position in the place of a packed token; values are the same.

    Gathers of packed tokens become changes of shape, which cost nothing. None for an engine that is not packed, and for
    one whose weights lie in another file, which could not be handed over in memory.
    """
    import onnx
    import onnx_graphsurgeon as gs

    # Only what fits into memory as one message.
    model = read_model(engine)
    external = any(weight.data_location == onnx.TensorProto.EXTERNAL for weight in model.graph.initializer)
    if external or not is_packed(model):
        return None
    # Every position is kept, in its own place.
    graph = gs.import_onnx(model)
    for node in list(graph.nodes):
        if node.name == KEPT:
            _all_kept(graph, node)
        elif node.name == PADS:
            node.inputs = [gs.Constant(f"{PADS}.{side}", np.array([0])) for side in ("before", "behind")]
        elif node.name.startswith(PACK) and node.inputs[0].inputs and node.inputs[0].inputs[0].op == "Reshape":
            node.op, node.attrs, node.inputs = "Identity", {}, node.inputs[:1]
        elif node.name.startswith(SPREAD):
            _reshape(graph, node)
    graph.cleanup().toposort()
    unpacked = gs.export_onnx(graph, do_type_check=False)
    unpacked.ir_version = model.ir_version
    return bytes(unpacked.SerializeToString())


def _all_kept(graph: Any, node: Any) -> None:
    """Count every position as real."""
    import onnx_graphsurgeon as gs

    size = gs.Variable(f"{node.name}.size")
    graph.nodes.append(gs.Node("Shape", size.name, {}, [node.inputs[0]], [size]))
    node.op, node.attrs = "Expand", {}
    node.inputs = [gs.Constant(f"{node.name}.one", np.array(1)), size]


def _reshape(graph: Any, node: Any) -> None:
    """``[B·S, H] -> [B, S, H]`` in the place of a Gather by places [B, S]."""
    import onnx_graphsurgeon as gs

    grid, shape = gs.Variable(f"{node.name}.grid"), gs.Variable(f"{node.name}.shape")
    width = gs.Constant(f"{node.name}.width", np.array([-1]))
    graph.nodes.append(gs.Node("Shape", grid.name, {}, [node.inputs[1]], [grid]))
    graph.nodes.append(gs.Node("Concat", shape.name, {"axis": 0}, [grid, width], [shape]))
    node.op, node.attrs, node.inputs = "Reshape", {}, [node.inputs[0], shape]
