"""Pass: several texts in one row, so that padding is left at the ends of rows only and attention shrinks with it.

A cell is one place of a row [rows, sequence]; it holds a token of some text, or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from export.passes.base import PassResult
from export.passes.text_inputs import (
    IDS,
    MASK,
    TextInputs,
    add_node,
    axes,
    check_by_token,
    drop_choices,
    fold_equal_lookups,
    replace_readers,
    row_selection,
    text_inputs,
)
from qdq.errors import PassError

SEGMENTS, POSITIONS, FIRST, CELLS = "segments", "positions", "first", "cells"
ROWS, SEQUENCE, TEXTS, LENGTH = "rows", "sequence", "texts", "length"  # names of the axes


def texts_in_rows(graph: gs.Graph) -> PassResult:
    """Take texts side by side in rows instead of one text a row.

    Before: ``input_ids [batch, sequence]``, token types and attention_mask the same; a mask [batch, 1, 1, sequence] in
    every attention; positions counted in the graph; ``Gather(axis 1, 0)`` of the first token.
    After: ids and token types [rows, sequence]; ``segments`` [rows, sequence], the number of the text that a cell
    belongs to, 0 for none: cells attend those of their own number; ``positions`` [rows, sequence], rows of the position
    table; ``first`` [texts], the flat index of each text's first cell, where the graph reads first tokens. A pooling
    under the mask reads the texts spread out again: ``cells`` [texts, length], the flat index of each token's cell,
    and ``attention_mask`` [texts, length]. Outputs are [texts, ...] or [rows, sequence, ...]. Every real token's values
    stay what they were, up to the order of float sums inside a kernel.
    Leaves alone: everything that works token by token, and attention. A graph that has ``segments`` already.
    Raises PassError, naming the node, for one that mixes tokens in another way. Facts: `TextInputs.as_json`, form,
    outputs (text or token by name) and whether first tokens are read.
    """
    if any(tensor.name == SEGMENTS for tensor in graph.inputs):
        return PassResult()
    fold_equal_lookups(graph)
    rows = _Rows(graph, text_inputs(graph))
    rows.replace_inputs()
    rows.walk()
    outputs = rows.finish()
    return PassResult(
        tuple(rows.changed),
        facts=rows.found.as_json()
        | {"form": "rows", "outputs": outputs, "first": any(item.name == FIRST for item in rows.added)},
    )


@dataclass
class _Rows:
    """A graph under change: its inputs first, then every node in order by what its operands have on their axes."""

    graph: gs.Graph
    found: TextInputs
    added: list[gs.Variable] = field(default_factory=list)  # inputs that the graph did not have
    changed: list[str] = field(default_factory=list)
    token: set[int] = field(default_factory=set)  # ids of tensors [rows, sequence, ...]
    text: set[int] = field(default_factory=set)  # ids of tensors [texts, ...]
    _sized: set[int] = field(default_factory=set)  # ids of nodes that read how many texts or choices there are

    def replace_inputs(self) -> None:
        """Give ids and token types their new shape, and mask and positions their new inputs."""
        graph, found = self.graph, self.found
        tokens = {name: self._in_rows(name, tensor) for name, tensor in found.tokens.items()}
        mask, ids = tokens.pop(MASK), tokens[IDS]
        for reader in [node for node in mask.outputs if node.op == "Shape"]:
            reader.inputs = [ids]
        mask.shape = [TEXTS, LENGTH]
        for output in graph.outputs if found.choices else ():
            drop_choices(output)
        # A cell attends those of its own text.
        segments = self._added(SEGMENTS, ROWS, SEQUENCE)
        queries = add_node(graph, "Unsqueeze", f"{SEGMENTS}.queries", [segments, axes(f"{SEGMENTS}.query_axes", 1, 3)])
        keys = add_node(graph, "Unsqueeze", f"{SEGMENTS}.keys", [segments, axes(f"{SEGMENTS}.key_axes", 1, 2)])
        same = add_node(graph, "Equal", f"{SEGMENTS}.Equal", [queries, keys])
        same.dtype = np.dtype(bool)
        replace_readers(found.attends, same)
        if found.positions is not None:
            replace_readers(found.positions.indices, self._added(POSITIONS, ROWS, SEQUENCE))
            self.changed.append(found.positions.indices.name)
        self.changed.append(same.name)
        # A bias that is the same for all texts (MPNet's) need not be repeated for each in front of its sum.
        for node in [node for node in graph.nodes if node.op == "Expand"]:
            if all(reader.op == "Add" for reader in node.outputs[0].outputs):
                replace_readers(node.outputs[0], node.inputs[0])
        # What is still read, by whom.
        graph.inputs = [*tokens.values(), *self.added]
        graph.cleanup().toposort()
        if unknown := next((node for node in graph.nodes if id(node) in self._sized), None):
            raise PassError(f"{unknown.name} ({unknown.op}) depends on the number of texts; leave the rows form out")
        self.token = {id(tensor) for tensor in graph.inputs}
        if mask.outputs:
            graph.inputs.append(mask)
            self.text = {id(mask)}

    def _in_rows(self, name: str, tensor: gs.Tensor) -> gs.Variable:
        """The input `name` as [rows, sequence], read by the readers of `tensor`, its texts before."""
        before = next(item for item in self.graph.inputs if item.name == name)
        if tensor is before:
            tensor.shape = [ROWS, SEQUENCE]
            return tensor
        before.name = f"{name}.choices"
        made = gs.Variable(name, before.dtype, [ROWS, SEQUENCE])
        replace_readers(tensor, made)
        for reader in [node for node in before.outputs if node.op == "Shape"]:
            if reader.attrs.get("start") == 2:
                reader.inputs, reader.attrs = [made], {"start": 1, "end": 2}
            else:
                self._sized.add(id(reader))
        return made

    def _added(self, name: str, *shape: str) -> gs.Variable:
        made = next((tensor for tensor in self.added if tensor.name == name), None)
        if made is None:
            made = gs.Variable(name, np.dtype(np.int64), list(shape))
            self.added.append(made)
        return made

    def walk(self) -> None:
        """Visit every node behind those it reads."""
        for node in list(self.graph.nodes):
            by_token = [tensor for tensor in node.inputs if id(tensor) in self.token]
            by_text = any(id(tensor) in self.text for tensor in node.inputs)
            if node.op == "Shape" or not (by_token or by_text):
                continue
            if row_selection(node) and by_token:
                self._select(node)
            elif by_text:
                for tensor in by_token:
                    self._spread(node, tensor)
            else:
                check_by_token(node, self.token)
                self.token.update(map(id, node.outputs))
                continue
            self.text.update(map(id, node.outputs))

    def _select(self, node: gs.Node) -> None:
        """Take first tokens by `first` instead of by their place; [texts, H], or [texts, 1, H] for an index [1]."""
        first = self._added(FIRST, TEXTS)
        keeps = node.inputs[1].values.ndim == 1
        index = (
            add_node(self.graph, "Unsqueeze", f"{node.name}.first", [first, axes(f"{node.name}.axes", 1)])
            if keeps
            else first
        )
        node.inputs, node.attrs = [self._cells_of(node.inputs[0]), index], {"axis": 0}
        self.changed.append(node.name)

    def _spread(self, node: gs.Node, tensor: gs.Tensor) -> None:
        """Let a pooling read tokens as [texts, length, H]."""
        spread = f"{tensor.name}.{CELLS}"
        made = next(
            (
                reader.outputs[0]
                for cells in tensor.outputs
                for reader in cells.outputs[0].outputs
                if reader.name == spread
            ),
            None,
        )
        if made is None:
            made = add_node(
                self.graph, "Gather", spread, [self._cells_of(tensor), self._added(CELLS, TEXTS, LENGTH)], {"axis": 0}
            )
            self.changed.append(spread)
        node.inputs = [made if item is tensor else item for item in node.inputs]

    def _cells_of(self, tensor: gs.Tensor) -> gs.Tensor:
        """[rows, sequence, H] as [rows * sequence, H]."""
        name = f"{tensor.name}.flat"
        made = next((node.outputs[0] for node in tensor.outputs if node.name == name), None)
        return add_node(self.graph, "Flatten", name, [tensor], {"axis": 2}) if made is None else made

    def finish(self) -> dict[str, str]:
        """Put the added inputs into the graph and name the outputs' axes; what each output has one of."""
        self.graph.inputs += [
            tensor for tensor in self.added if not any(tensor is known for known in self.graph.inputs)
        ]
        outputs = {}
        for tensor in self.graph.outputs:
            if id(tensor) not in self.token | self.text:
                raise PassError(f"output {tensor.name} does not depend on the tokens; leave the rows form out")
            per_text = id(tensor) in self.text
            lead = 1 if per_text else 2
            tensor.shape = [
                *((TEXTS,) if per_text else (ROWS, SEQUENCE)),
                *((1,) if self.found.choices else tensor.shape[lead:]),
            ]
            outputs[tensor.name] = "text" if per_text else "token"
        return outputs
