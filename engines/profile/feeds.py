"""A batch of token ids for an engine file, without its tokenizer: times do not depend on the words."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qdq.base.types import Feeds

SEED = 0
PADDED_ROWS, PADDED_SHARE = 2, 3  # every second row is padding in its last third, as real batches have some


def token_feeds(model: Path, batch: int, sequence: int) -> Feeds:
    """Ids below the size of the model's embedding table, a mask with some padding, and zeros for every other input.

    Raises BuildError, or the runtime's error, when the file cannot be read.
    """
    names, words = _openvino(model) if model.suffix == ".xml" else _onnx(model)
    ids = np.random.default_rng(SEED).integers(0, words, (batch, sequence))
    mask = np.ones((batch, sequence), np.int64)
    mask[1::PADDED_ROWS, sequence - sequence // PADDED_SHARE :] = 0
    known = {"input_ids": ids, "attention_mask": mask}
    return {name: known.get(name, np.zeros((batch, sequence), np.int64)) for name in names}


def _onnx(model: Path) -> tuple[list[str], int]:
    """Input names, and the rows of the table that the first look-up of ids reads."""
    from engines.interface import interface, read_model

    inputs, _ = interface(model)
    graph = read_model(model).graph
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    carried = {"input_ids"}
    for node in graph.node:
        if node.op_type in ("Cast", "Reshape", "Identity") and node.input[0] in carried:
            carried.add(node.output[0])
        elif len(node.input) > 1 and node.input[1] in carried and node.input[0] in sizes:
            return [info.name for info in inputs], sizes[node.input[0]][0]
    return [info.name for info in inputs], 2


def _openvino(model: Path) -> tuple[list[str], int]:
    from engines.openvino.build import open_core

    network = open_core().read_model(str(model))
    names = [port.get_any_name() for port in network.inputs]
    carried: set[str] = {"input_ids"}
    for operation in network.get_ordered_ops():
        sources = [value.get_node().get_friendly_name() for value in operation.input_values()]
        if operation.get_type_name() in ("Convert", "Reshape") and sources[0] in carried:
            carried.add(operation.get_friendly_name())
        elif operation.get_type_name() == "Gather" and sources[1] in carried:
            return names, int(operation.input(0).get_partial_shape()[0].get_length())
    return names, 2
