"""The index tensors by which `export.passes.pack_tokens` finds real tokens, computed in the graph from the mask."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from qdq.base.packing import COLUMNS_STEP, CROP, KEPT, PACKING, PADS, PLACES, REAL_SLOTS, TOKENS_STEP

BOOL, INT64 = TensorProto.BOOL, TensorProto.INT64


@dataclass
class TokenIndices:
    """Index tensors of a graph, all INT64, with S up to the batch's longest text where it says S'.

    `slots` [T]: the position in [B·S'] of every packed token, then 0 for those that stand for padding, of which there
    is at least one. `columns` [T]: the same within its text. `places` [B, S] and `cropped` [B, S']: the packed token of
    every position, the first that stands for padding where it has none.
    """

    graph: gs.Graph
    mask: gs.Tensor  # the input [B, S], or [B, N, S], which counts as [B·N, S]
    made: dict[str, gs.Tensor] = field(default_factory=dict)

    def build(self, rows: Iterable[int]) -> None:
        """Add the nodes that compute them, and cut every input of the graph to S'.

        A packed token has every position whose mask is 1, those in the columns `rows`, which a pooler reads, and all of
        a text without any: whatever attention to nothing but padding gives is then what it was.
        """
        sequence = self.op("Shape", "sequence", [self.mask], start=len(self.mask.shape) - 1)
        bounds = [self.constant("none", 0), self.number(sequence), self.constant("one", 1)]
        numbers = self.op("Range", "numbers", bounds)
        kept = self._kept(numbers, rows)
        end = self._end(kept, numbers, sequence)
        for tensor in list(self.graph.inputs):
            self._crop(tensor, end)
        self._to_tokens(kept, end)
        self._to_positions(kept, end)

    @property
    def slots(self) -> gs.Tensor:
        """Positions of packed tokens."""
        return self.made["slots"]

    @property
    def columns(self) -> gs.Tensor:
        """Columns of packed tokens."""
        return self.made["columns"]

    @property
    def places(self) -> gs.Tensor:
        """Packed tokens of all positions."""
        return self.made["places"]

    @property
    def cropped(self) -> gs.Tensor:
        """Packed tokens of positions up to the longest text."""
        return self.made["cropped"]

    def _kept(self, numbers: gs.Tensor, rows: Iterable[int]) -> gs.Tensor:
        """1 for every position that gets a packed token, 0 for the others."""
        real = self.op("Cast", "real", [self.mask], to=BOOL)
        count = self.op("Cast", "count", [real], to=INT64)
        most = self.op("ReduceMax", "any", [count, self.constant("last", [-1])])
        keep = self.op("Or", "keep", [real, self.op("Equal", "empty", [most, self.constant("none", 0)])])
        for row in rows:
            needed = self.op("Equal", f"row_{row}", [numbers, self.constant(f"row_{row}.index", row)])
            keep = self.op("Or", f"keep.row_{row}", [keep, needed])
        return self.op("Cast", KEPT, [keep], to=INT64)

    def _end(self, kept: gs.Tensor, numbers: gs.Tensor, sequence: gs.Tensor) -> gs.Tensor:
        """S' [1], a multiple of COLUMNS_STEP or S."""
        ends = self.op("Mul", "ends", [kept, self.op("Add", "numbers.next", [numbers, self.constant("one", 1)])])
        end = self.op("ReduceMax", "end", [ends], keepdims=0)
        end = self.op("Reshape", "longest", [end, self.constant("vector", [1])])
        return self.op("Min", "longest.step", [self._step(end, COLUMNS_STEP), sequence])

    def _to_tokens(self, kept: gs.Tensor, end: gs.Tensor) -> None:
        every = self.constant("every", [-1])
        flat = self.op("Reshape", "flat", [self._cut(f"{KEPT}.crop", kept, end), every])
        slots = self.op("Reshape", REAL_SLOTS, [self.op("NonZero", "found", [flat]), every])
        tokens = self.op("Shape", "tokens", [slots])
        more = self.op("Add", "tokens.padding", [tokens, self.constant("one", 1)])
        more = self.op("Sub", "more", [self._step(more, TOKENS_STEP), tokens])
        pads = self.op("Concat", PADS, [self.constant("start", [0]), more], axis=0)
        self.made["slots"] = self.op("Pad", "slots", [slots, pads])
        self.made["columns"] = self.op("Mod", "slots.column", [self.slots, end])
        self.made["padding"] = tokens

    def _to_positions(self, kept: gs.Tensor, end: gs.Tensor) -> None:
        flat = self.op("Reshape", "all", [kept, self.constant("every", [-1])])
        order = self.op("CumSum", "order", [flat, self.constant("none", 0)])
        before = self.op("Sub", "before", [order, self.constant("one", 1)])
        known = self.op("Cast", "all.keep", [flat], to=BOOL)
        chosen = self.op("Where", "chosen", [known, before, self.made["padding"]])
        places = self.op("Reshape", PLACES, [chosen, self.op("Shape", "grid", [self.mask])])
        self.made["cropped"] = self.flat(self._cut(f"{PLACES}.crop", places, end))
        self.made["places"] = self.flat(places)

    def _crop(self, tensor: gs.Tensor, end: gs.Tensor) -> None:
        """Let everything but the packing read an input up to the longest text."""
        readers = [node for node in tensor.outputs if not node.name.startswith(PACKING)]
        cropped = self._cut(f"{CROP}{tensor.name}", tensor, end)
        cropped.dtype = tensor.dtype
        for node in readers:
            node.inputs = [cropped if own is tensor else own for own in node.inputs]

    def _cut(self, name: str, tensor: gs.Tensor, end: gs.Tensor) -> gs.Tensor:
        return self.op("Slice", name, [tensor, self.constant("start", [0]), end, self.constant("last", [-1])])

    def _step(self, size: gs.Tensor, step: int) -> gs.Tensor:
        """The next multiple of `step`."""
        up = self.op("Add", f"{size.name}.up", [size, self.constant(f"below_{step}", step - 1)])
        steps = self.op("Div", f"{size.name}.steps", [up, self.constant(f"step_{step}", step)])
        return self.op("Mul", f"{size.name}.next", [steps, self.constant(f"step_{step}", step)])

    def flat(self, tensor: gs.Tensor) -> gs.Tensor:
        """[B, N, S] as [B·N, S]."""
        return tensor if len(self.mask.shape) == 2 else self.op("Flatten", f"{tensor.name}.rows", [tensor], axis=2)

    def number(self, vector: gs.Tensor) -> gs.Tensor:
        """The one value of a vector."""
        return self.op("Squeeze", f"{vector.name}.number", [vector, self.constant("start", [0])])

    def constant(self, name: str, value: Any) -> gs.Tensor:
        """A constant of the packing; one per name."""
        name = f"{PACKING}{name}"
        if name not in self.made:
            self.made[name] = gs.Constant(name, np.asarray(value, np.int64))
        return self.made[name]

    def op(self, op: str, name: str, inputs: list[gs.Tensor], **attrs: Any) -> gs.Tensor:
        """The result of a new node of the packing."""
        name = name if name.startswith(PACKING) else f"{PACKING}{name}"
        made = gs.Variable(name)
        self.graph.nodes.append(gs.Node(op, name, attrs, inputs, [made]))
        return made
