"""Pass: the tokens of a batch are packed, so that padding costs nothing in linears, GELU, LayerNorm and quantization.

`qdq.base.packing` has the names of the nodes it adds: a runner that knows its batch to be full takes them out again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from export.passes.attention_masks import NotMaskedError, masked_attention
from export.passes.base import Declined, PassResult
from export.passes.needed_rows import Shapes
from export.passes.token_indices import TokenIndices
from export.passes.token_work import POOLS, TokenWork, is_columns, varying_shapes
from qdq.base.packing import CROP, OUTPUT, PACK, PACKING, SPREAD, ZEROS


def pack_tokens(graph: gs.Graph) -> PassResult:
    """Work on real tokens only.

    Before: ``ids[B,S] -> look-ups -> linears -> attention -> linears -> y[B,S,H]``, on every position.
    After: the inputs are cut to the batch's longest text; ``ids -> [1,T]`` holds the tokens whose mask is 1, and a few
    that stand for padding; the linears and all else that works token by token see [1,T,H]. Attention sees
    ``[1,T,H] -> [B,S,H]`` and its result is packed again; a pooler's row is gathered directly; an output [B,S,...] is
    spread out again, with 0 where the mask is 0. Every value that a mask of 1 stands for is what it was, up to the
    order of float sums inside a kernel; so is that of a text whose mask is all 0, which counts as full.
    Leaves alone: declined with the reason, a graph whose attention does not take its mask from one input, and one in
    which something other than attention and masked pooling mixes tokens.
    """
    if any(node.name.startswith(PACKING) for node in graph.nodes):
        return PassResult()
    try:
        found = masked_attention(graph)
        shapes = varying_shapes(graph)
        work, indices = TokenWork(graph, shapes), TokenIndices(graph, found.mask)
        packing = _Packing(graph, shapes, work, indices, found.operands)
        packing.check()
    except NotMaskedError as reason:
        return PassResult(declined=(Declined(reason.node, str(reason)),))
    if not packing.work.nodes:
        return PassResult()
    packing.run()
    return PassResult(tuple(node.name for node in packing.work.nodes.values()))


@dataclass
class _Packing:
    """One graph, the part of it that will work on packed tokens, and the ways in and out."""

    graph: gs.Graph
    shapes: Shapes
    work: TokenWork
    indices: TokenIndices
    attention: frozenset[int]  # ids of the nodes through which attention reads its operands
    selected: list[gs.Node] = field(default_factory=list)  # Gathers of one row of every text
    made: dict[str, gs.Tensor] = field(default_factory=dict)

    def check(self) -> None:
        """Raise NotMaskedError for whatever needs the states of padding."""
        for tensor, reader in self.work.leaving():
            if reader.op == "Gather" and reader.attrs.get("axis", 0) == 1 and _row(reader) is not None:
                self.selected.append(reader)
            elif not (id(reader) in self.attention or self._pools(tensor, reader)):
                raise NotMaskedError(reader.name, f"{reader.op} mixes tokens, or reads those of padding")
        for node in self.work.nodes.values():
            for place in self.work.fed(node):
                if not all(isinstance(size, int) for size in self.shapes[node.inputs[place].name][2:]):
                    raise NotMaskedError(node.name, "it reads a tensor whose last axes have no fixed size")

    def run(self) -> None:
        """Make the index tensors, feed the packed nodes with tokens and spread what leaves them."""
        leaving = list(self.work.leaving())
        self.indices.build(sorted({_row(node) or 0 for node in self.selected}))
        cropped = {f"{CROP}{tensor.name}": self.shapes[tensor.name] for tensor in self.graph.inputs}
        self.shapes = self.work.shapes = {**self.shapes, **cropped}
        for node in self.work.nodes.values():
            for place in list(self.work.fed(node)):
                node.inputs[place] = self._packed(node.inputs[place])
        for tensor, reader in leaving:
            if any(reader is node for node in self.selected):
                self._select(tensor, reader)
            else:
                spread = self._spread(tensor)
                reader.inputs = [spread if own is tensor else own for own in reader.inputs]
        for place, output in enumerate(self.graph.outputs):
            if id(output) in self.work.made:
                self.graph.outputs[place] = self._whole(output)

    def _pools(self, tensor: gs.Tensor, reader: gs.Node) -> bool:
        """True for ``states * mask -> ReduceSum`` and ``states + mask -> ReduceMax`` over the tokens."""
        behind = [node for output in reader.outputs for node in output.outputs]
        others = [own for own in reader.inputs if own is not tensor]
        if not others or not behind or any(_inputs_of(own) != {self.indices.mask.name} for own in others):
            return False
        return all(POOLS.get(node.op) == reader.op and _over_tokens(node) for node in behind)

    def _packed(self, tensor: gs.Tensor) -> gs.Tensor:
        """[B,S,...] or [1,S,...] as [1,T,...]."""
        name, indices = f"{PACK}{tensor.name}", self.indices
        if name in self.made:
            return self.made[name]
        shape = self.shapes[tensor.name]
        if is_columns(shape):
            self.made[name] = self._gather(name, tensor, indices.columns, 1, tensor)
        else:
            target = indices.constant(f"{tensor.name}.flat", [1, -1, *shape[2:]])
            flat = indices.op("Reshape", f"flat.{tensor.name}", [tensor, target])
            self.made[name] = self._gather(name, flat, indices.slots, 1, tensor)
        return self.made[name]

    def _tokens(self, tensor: gs.Tensor) -> gs.Tensor:
        """[1,T,...] as [T,...]."""
        name = f"tokens.{tensor.name}"
        if name not in self.made:
            self.made[name] = self.indices.op("Squeeze", name, [tensor, self.indices.constant("start", [0])])
        return self.made[name]

    def _spread(self, tensor: gs.Tensor) -> gs.Tensor:
        """[1,T,...] as [B,S,...] up to the longest text, with a token that stands for padding in between."""
        name = f"{SPREAD}{tensor.name}"
        if name not in self.made:
            self.made[name] = self._gather(name, self._tokens(tensor), self.indices.cropped, 0, tensor)
        return self.made[name]

    def _select(self, tensor: gs.Tensor, reader: gs.Node) -> None:
        """Gather one row of every text: [1,T,H] -> [B,H], or [B,1,H] when its index is a list."""
        row = reader.inputs[1]
        place = self.indices.op("Gather", f"place.{reader.name}", [self.indices.cropped, row], axis=1)
        reader.inputs = [self._tokens(tensor), place]
        reader.attrs["axis"] = 0

    def _whole(self, output: gs.Tensor) -> gs.Tensor:
        """An output [B,S,...] in its full length, 0 for padding, under its own name."""
        name, indices = output.name, self.indices
        inner = gs.Variable(f"{name}.packed", dtype=output.dtype)
        whole = gs.Variable(name, dtype=output.dtype, shape=output.shape)
        output.inputs[0].outputs = [inner if own is output else own for own in output.inputs[0].outputs]
        for reader in list(output.outputs):
            reader.inputs = [inner if own is output else own for own in reader.inputs]
        spread = self._gather(f"{OUTPUT}{name}", self._tokens(inner), indices.places, 0, output)
        # The mask, with an axis for every one behind the tokens.
        real = indices.flat(indices.op("Cast", f"real.{name}", [indices.mask], to=TensorProto.BOOL))
        if len(output.shape) > 2:
            axes = indices.constant(f"{name}.axes", list(range(2, len(output.shape))))
            real = indices.op("Unsqueeze", f"real.{name}.column", [real, axes])
        zero = gs.Constant(f"{PACKING}{name}.zero", np.zeros((), output.dtype))
        self.graph.nodes.append(gs.Node("Where", f"{ZEROS}{name}", {}, [real, spread, zero], [whole]))
        return whole

    def _gather(self, name: str, data: gs.Tensor, index: gs.Tensor, axis: int, like: gs.Tensor) -> gs.Tensor:
        made = gs.Variable(name, dtype=like.dtype)
        self.graph.nodes.append(gs.Node("Gather", name, {"axis": axis}, [data, index], [made]))
        return made


def _row(gather: gs.Node) -> int | None:
    """The one row, counted from the start, that a Gather takes of every text."""
    index = gather.inputs[1]
    single = isinstance(index, gs.Constant) and index.values.size == 1 and index.values.item() >= 0
    return int(index.values.item()) if single else None


def _over_tokens(node: gs.Node) -> bool:
    axes = node.inputs[1].values if len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant) else np.zeros(1)
    return bool(axes.tolist() == [1])


def _inputs_of(tensor: gs.Tensor) -> set[str]:
    """Names of the graph's inputs that a tensor's values come from, constants apart."""
    if isinstance(tensor, gs.Constant):
        return set()
    return set().union(*map(_inputs_of, tensor.inputs[0].inputs)) if tensor.inputs else {tensor.name}
