"""Pass: real tokens one behind the other, but for attention, in a graph whose batch stays [batch, sequence]."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from export.passes.base import PassResult
from export.passes.text_inputs import (
    MASK,
    TextInputs,
    add_node,
    axes,
    check_by_token,
    embedding_lookups,
    fold_equal_lookups,
    row_selection,
    text_inputs,
)
from qdq.errors import PassError

SLOTS, WHERE, TOKENS = "slots", "where", "tokens"  # two inputs, and the axis of real tokens


def gather_tokens(graph: gs.Graph) -> PassResult:
    """Compute everything but attention for real tokens only.

    Before: tokens [batch, sequence, H] in every linear, padding with them.
    After: the inputs and two more: ``slots`` [tokens], the flat indices of the real tokens, and ``where``
    [batch, sequence], for every place the number of its token among them (any, for padding). Embeddings look up
    ``slots`` only, linears work on [1, tokens, H]; heads are spread by ``where`` in front of an attention, and its
    result is gathered by ``slots`` again. A pooling, and an output per token, is spread by ``where``: padded places
    of an output hold what some other token has. No padded place is read: as a key the mask removes it, as a query
    nobody gathers it.
    Leaves alone: attention, the outputs' shapes, everything per text. A graph that has ``slots`` already.
    Raises PassError, naming the node, for one that mixes tokens in a way other than attention or pooling.
    """
    if any(tensor.name == SLOTS for tensor in graph.inputs):
        return PassResult()
    fold_equal_lookups(graph)
    found = text_inputs(graph)
    work = _Gathering(graph, found)
    work.embed()
    work.walk()
    outputs = work.finish()
    facts = found.as_json() | {"form": "gather", "outputs": outputs, "first": work.first is not None}
    return PassResult(tuple(work.changed), facts=facts)


@dataclass
class _Gathering:
    """A graph under change: embeddings first, then every node in order by what its operands have on their axes."""

    graph: gs.Graph
    found: TextInputs
    changed: list[str] = field(default_factory=list)
    packed: set[int] = field(default_factory=set)  # ids of tensors [1, tokens, ...]
    padded: set[int] = field(default_factory=set)  # inside an attention: [texts, sequence, ...] or [texts, heads, ...]
    text: set[int] = field(default_factory=set)  # [texts, ...]
    first: gs.Tensor | None = None  # `where` of every text's first token [texts]

    def __post_init__(self) -> None:
        integers = np.dtype(np.int64)
        shape = ["texts" if self.found.choices else "batch", "sequence"]
        self.slots, self.where = gs.Variable(SLOTS, integers, [TOKENS]), gs.Variable(WHERE, integers, shape)
        self.graph.inputs += [self.slots, self.where]
        self.text.add(id(self.found.tokens[MASK]))

    def embed(self) -> None:
        """Look up real tokens only."""
        taken: dict[int, gs.Tensor] = {}
        sizes = None
        for lookup in embedding_lookups(self.graph):
            indices = lookup.inputs[1]
            if id(indices) not in taken:
                source, name = indices, f"{indices.name}.{SLOTS}"
                if self.found.positions is not None and indices is self.found.positions.indices:
                    if sizes is None:
                        sizes = add_node(self.graph, "Shape", f"{SLOTS}.sizes", [self.found.ids])
                    source = add_node(self.graph, "Expand", f"{indices.name}.every", [indices, sizes])
                flat = add_node(
                    self.graph, "Reshape", f"{indices.name}.flat", [source, axes(f"{indices.name}.line", -1)]
                )
                taken[id(indices)] = self._behind(name, flat)
            lookup.inputs = [lookup.inputs[0], taken[id(indices)]]
            self.packed.add(id(lookup.outputs[0]))
            self.changed.append(lookup.name)
        self.graph.cleanup().toposort()

    def walk(self) -> None:
        """Visit every node behind those it reads."""
        for node in list(self.graph.nodes):
            packed = [tensor for tensor in node.inputs if id(tensor) in self.packed]
            if packed and row_selection(node):
                self._select(node)
            elif packed and any(id(tensor) in self.text for tensor in node.inputs):
                node.inputs = [self._spread(item) if id(item) in self.packed else item for item in node.inputs]
                self._reads(node, self.text)
            elif packed and _splits_heads(node):
                node.inputs[0] = self._spread(node.inputs[0])
                self._reads(node, self.padded)
            elif packed:
                check_by_token(node, self.packed)
                self.packed.update(map(id, node.outputs))
            elif any(id(tensor) in self.padded for tensor in node.inputs):
                self._inside(node)
            elif any(id(tensor) in self.text for tensor in node.inputs) and node.op != "Shape":
                self.text.update(map(id, node.outputs))

    def _reads(self, node: gs.Node, kind: set[int]) -> None:
        self.changed.append(node.name)
        kind.update(map(id, node.outputs))

    def _inside(self, node: gs.Node) -> None:
        """Attention itself stays padded; behind the Reshape that merges its heads, real tokens go on."""
        result = node.outputs[0]
        if node.op != "Reshape" or not isinstance(node.inputs[1], gs.Constant) or node.inputs[1].values.size != 3:
            self.padded.update(map(id, node.outputs))
            return
        readers = list(result.outputs)
        flat = add_node(self.graph, "Flatten", f"{node.name}.flat", [result], {"axis": 2})
        tokens = self._behind(f"{node.name}.{SLOTS}", flat)
        for reader in readers:
            reader.inputs = [tokens if tensor is result else tensor for tensor in reader.inputs]
        self.packed.add(id(tokens))
        self.changed.append(node.name)

    def _select(self, node: gs.Node) -> None:
        """The first token of every text: [texts, H], or [texts, 1, H] for an index [1]."""
        keeps = node.inputs[1].values.ndim == 1
        place = gs.Constant(f"{node.name}.column", np.asarray([0] if keeps else 0, np.int64))
        self.first = add_node(self.graph, "Gather", f"{node.name}.{WHERE}", [self.where, place], {"axis": 1})
        node.inputs, node.attrs = [self._line(node.inputs[0]), self.first], {"axis": 0}
        self._reads(node, self.text)

    def _behind(self, name: str, flat: gs.Tensor) -> gs.Tensor:
        """Rows of [places, ...] that hold real tokens, as [1, tokens, ...]."""
        line = add_node(self.graph, "Gather", name, [flat, self.slots], {"axis": 0})
        return add_node(self.graph, "Unsqueeze", f"{name}.tokens", [line, axes(f"{name}.axes", 0)])

    def _spread(self, tensor: gs.Tensor) -> gs.Tensor:
        """[1, tokens, ...] as [texts, sequence, ...]."""
        name = f"{tensor.name}.{WHERE}"
        line = self._line(tensor)
        made = next((node.outputs[0] for node in line.outputs if node.name == name), None)
        if made is not None:
            return made
        return add_node(self.graph, "Gather", name, [line, self.where], {"axis": 0})

    def _line(self, tensor: gs.Tensor) -> gs.Tensor:
        name = f"{tensor.name}.line"
        made = next((node.outputs[0] for node in tensor.outputs if node.name == name), None)
        return add_node(self.graph, "Squeeze", name, [tensor, axes(f"{name}.axes", 0)]) if made is None else made

    def finish(self) -> dict[str, str]:
        """Spread the outputs per token; what each output has one of."""
        outputs = {}
        for index, tensor in enumerate(list(self.graph.outputs)):
            if id(tensor) not in self.packed | self.text:
                raise PassError(f"output {tensor.name} does not depend on the tokens; leave the gather form out")
            outputs[tensor.name] = "text" if id(tensor) in self.text else "token"
            if id(tensor) in self.packed:
                inner = gs.Variable(f"{tensor.name}.{SLOTS}", tensor.dtype)
                producer = tensor.inputs[0]
                producer.outputs = [inner if made is tensor else made for made in producer.outputs]
                spread = self._spread(inner)
                spread.inputs[0].outputs = [self.graph.outputs[index]]
        self.graph.cleanup().toposort()
        return outputs


def _splits_heads(node: gs.Node) -> bool:
    target = node.inputs[1] if node.op == "Reshape" else None
    return isinstance(target, gs.Constant) and target.values.size > 3 and not target.values[:2].any()
