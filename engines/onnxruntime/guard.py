"""A graph of ONNX Runtime that refuses negative ids, for servers with nothing but the graph in front of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from engines.types import BuiltEngine

IDS = ("input_ids", "token_type_ids")
BEYOND = 2**31 - 1  # of every table, and an INT32


def refuse_negative_ids(engine: BuiltEngine, folder: Path) -> BuiltEngine:
    """The engine with its ONNX file rewritten into `folder`: a negative id becomes one beyond every table.

    ONNX's Gather counts negative indices from the end, so that id -1 is answered as the last word of the vocabulary;
    what lies beyond a table is an error. The files of its weights are copied. Outputs of all other ids are the same.
    """
    import onnx
    from onnx import helper
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    (file,) = (path for path in engine.files if path.suffix == ".onnx")
    model = onnx.load(str(file), load_external_data=False)
    graph, guards = model.graph, []
    for info in (value for value in graph.input if value.name in IDS):
        # ids < 0 ? BEYOND : ids, for everything that reads the input
        name, kind = info.name, info.type.tensor_type.elem_type
        for node in graph.node:
            node.input[:] = [f"{name}.known" if read == name else read for read in node.input]
        for constant, value in (("none", 0), ("beyond", BEYOND)):
            graph.initializer.append(helper.make_tensor(f"{name}.{constant}", kind, (), [value]))
        guards += [
            helper.make_node("Less", [name, f"{name}.none"], [f"{name}.negative"], f"{name}.negative"),
            helper.make_node("Where", [f"{name}.negative", f"{name}.beyond", name], [f"{name}.known"], f"{name}.known"),
        ]
    nodes = [*guards, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    folder.mkdir(parents=True, exist_ok=True)
    for weights in {ExternalDataInfo(one).location for one in graph.initializer if uses_external_data(one)}:
        shutil.copyfile(file.parent / weights, folder / weights)
    onnx.save(model, str(folder / file.name))
    return replace(engine, files=tuple(folder / path.name if path == file else path for path in engine.files))
