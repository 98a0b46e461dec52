"""Pass: everything that is not quantized in FP16 (or BF16), in a graph whose types alone decide what runs.

A node works in FP32 when `keep_float` says so, else in the half type. Between them: a constant is converted, a Cast or
a DequantizeLinear makes the type its readers want, a QuantizeLinear reads the type it is given, and only where a
computed tensor is left in the wrong type is a Cast put in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

from export.names import DEQUANTIZE, PAIR, QUANTIZE
from export.passes.base import Declined, PassResult
from export.passes.element_types import HALVES, Body, Half, Types, element_types, onnx_type, output_types
from export.passes.keep_float import Kept, kept_in_fp32
from export.reading import FLOATS
from qdq.base.choices import BODIES
from qdq.base.config import choice
from qdq.errors import PassError

FP32 = TensorProto.FLOAT
CAST = "Cast"
ADAPTERS = (CAST, DEQUANTIZE, "Constant", "ConstantOfShape")  # make whatever float type their readers want


def half_body(graph: gs.Graph, body: Body = "fp16", ranges: Mapping[str, float] | None = None) -> PassResult:
    """Retype the float part of a graph.

    Before: FP32 everywhere, ``x -> Q -> DQ -> MatMul`` with FP32 scales.
    After: constants, scales and tensors of the `body` type; every DQ makes the type its reader multiplies in, so no
    Cast stands between them; LayerNormalization says ``stash_type=1`` (its sums in FP32); a mask constant beyond the
    type is clamped. Outputs keep their FP32 type behind one Cast each.
    Leaves alone, in FP32 and listed as declined: what `keep_float` finds by operator, constant and `ranges` (largest
    |x| per tensor, see `export.ranges.measure_ranges`). Integers and INT8 codes. Everything when `body` is fp32.

    FP16 keeps every scale exactly. BF16 has 8 bits of precision and rounds a scale by up to 0.4 %, as it does every
    tensor; the INT8 codes stay right, since 127 * 2**-8 is under half a step.

    Raises ConfigError for an unknown body, PassError for a scale that is no FP16 value and for what `element_types`
    refuses.
    """
    if choice(body, BODIES, "body") == "fp32":
        return PassResult()
    half = HALVES[body]
    types = element_types(graph)
    kept = kept_in_fp32(graph, types, half, ranges)
    retyping = Retyping(graph, types, half, kept.nodes, kept.clamped)
    retyping.run()
    return PassResult(tuple(retyping.changed), tuple(_listed(graph, kept, half, retyping.rounding, ranges is not None)))


def _listed(graph: gs.Graph, kept: Kept, half: Half, rounding: float, measured: bool) -> Iterator[Declined]:
    """Everything that is not exactly the half type, in graph order."""
    for node in graph.nodes:
        if node.name in kept.nodes:
            yield Declined(node.name, f"stays FP32: {kept.nodes[node.name]}")
    for name, why in kept.clamped.items():
        yield Declined(name, why)
    if rounding:
        yield Declined("scales", f"rounded to {half.title}, by at most {rounding:.2%}")
    if not measured:
        yield Declined("ranges", f"not measured; that no tensor exceeds {half.title} is not proved")
    elif kept.unmeasured:
        number, first = len(kept.unmeasured), kept.unmeasured[0]
        yield Declined("ranges", f"{number} tensor(s) were not measured and may overflow, the first is {first}")


@dataclass
class Retyping:
    """A topologically sorted graph under change, and what was made for it so far."""

    graph: gs.Graph
    types: Types  # element types of the graph's tensors, edited as the graph is
    half: Half  # the type of every node that is not in `kept`
    kept: Collection[str]  # names of the nodes that work in FP32
    clamped: Collection[str]  # names of scalar constants to clamp to the half type's limit
    changed: list[str] = field(
        default_factory=list
    )  # names of nodes whose types changed, in graph order, and of new ones
    rounding: float = 0.0  # largest relative change of a scale by its rounding to the half type
    _wanted: dict[int, int] = field(default_factory=dict)  # id of a node -> its float type
    _constants: dict[tuple[int, int], tuple[gs.Constant, gs.Constant]] = field(default_factory=dict)
    _casts: dict[tuple[str, int], gs.Variable] = field(default_factory=dict)

    def run(self) -> None:
        """Retype the graph; sort it afterwards. Raises PassError for a scale that is no FP16 value."""
        stated = {tensor.name: onnx_type(tensor) for tensor in self.graph.outputs}
        for node in reversed(list(self.graph.nodes)):
            self._choose(node, stated)
        for node in list(self.graph.nodes):
            self._retype(node)
        for tensor in self.graph.outputs:
            if self.types[tensor.name] != stated[tensor.name]:
                self._cast_output(tensor, stated[tensor.name])
        self._reuse_names()

    def _choose(self, node: gs.Node, stated: Mapping[str, int]) -> None:
        """Decide the node's type, those of its readers being known; a DQ that is read in two types becomes two."""
        readers = self._readers(node)
        wants = {self._wanted[id(reader)] for reader in readers}
        wants |= {stated[tensor.name] for tensor in node.outputs if tensor.name in stated}
        fp32 = node.name in self.kept or (node.op in ADAPTERS and wants == {FP32})
        self._wanted[id(node)] = FP32 if fp32 else self.half.element
        if node.op == DEQUANTIZE and len(wants) > 1:
            self._split(node, [reader for reader in readers if self._wanted[id(reader)] == FP32])

    def _readers(self, node: gs.Node) -> list[gs.Node]:
        """Readers whose result depends on the float type they are given."""
        readers = [reader for tensor in node.outputs for reader in tensor.outputs]
        return [reader for reader in readers if reader.op != QUANTIZE and not self._indifferent(reader)]

    def _indifferent(self, node: gs.Node) -> bool:
        """Return whether its one float operand may have any type, as no float follows from it: Cast, Shape, IsNaN…"""
        floats = sum(self.types.get(tensor.name) in FLOATS for tensor in node.inputs)
        makes_float = any(self.types.get(tensor.name) in FLOATS for tensor in node.outputs)
        return node.op == CAST or (floats == 1 and not makes_float)

    def _split(self, node: gs.Node, fp32_readers: list[gs.Node]) -> None:
        """Add a second DQ on the same codes: it costs nothing, and a Cast behind the first would prevent fusion."""
        name = f"{node.name}.fp32"
        second = gs.Node(DEQUANTIZE, name, dict(node.attrs), list(node.inputs), [gs.Variable(name)])
        for reader in fp32_readers:
            _replace(reader, node.outputs[0], second.outputs[0])
        self._wanted[id(second)] = FP32
        self.graph.nodes.insert(1 + next(i for i, other in enumerate(self.graph.nodes) if other is node), second)

    def _retype(self, node: gs.Node) -> None:
        """Give one node its type; those before it have theirs."""
        wanted = self._wanted[id(node)]
        if node.op == QUANTIZE:
            wanted = self.types[node.inputs[0].name]
        changed = _retype_attributes(node, wanted)
        if not self._indifferent(node):
            for index, tensor in enumerate(list(node.inputs)):
                found = self.types.get(tensor.name)
                if found in FLOATS and found != wanted:
                    node.inputs[index] = self._as_type(tensor, wanted, node)
                    changed = True
        for name, element in output_types(node, self.graph.opset, self.types).items():
            changed |= self.types.get(name) != element
            self.types[name] = element
        for tensor in node.outputs:
            tensor.dtype = helper.tensor_dtype_to_np_dtype(self.types[tensor.name])
        if changed:
            self.changed.append(node.name)

    def _as_type(self, tensor: gs.Tensor, wanted: int, reader: gs.Node) -> gs.Tensor:
        if isinstance(tensor, gs.Constant):
            return self._constant(tensor, wanted, reader)
        key = tensor.name, wanted
        if key not in self._casts:
            dtype = helper.tensor_dtype_to_np_dtype(wanted)
            self._casts[key] = gs.Variable(f"{tensor.name}.{FLOATS[wanted]}", dtype=dtype)
            self._append_cast(tensor, self._casts[key], wanted)
        return self._casts[key]

    def _constant(self, tensor: gs.Constant, wanted: int, reader: gs.Node) -> gs.Constant:
        key = (id(tensor), wanted)
        if key not in self._constants:
            values = np.asarray(tensor.values)
            if tensor.name in self.clamped:
                values = np.asarray(np.clip(values, -self.half.limit, self.half.limit))
            with np.errstate(over="ignore"):  # keep_float saw to what must not become infinite
                converted = values.astype(helper.tensor_dtype_to_np_dtype(wanted))
            if reader.op in PAIR:
                self._check_scale(reader, values.astype(np.float64), converted.astype(np.float64))
            self._constants[key] = (tensor, gs.Constant(f"{tensor.name}.{FLOATS[wanted]}", converted))
        return self._constants[key][1]

    def _check_scale(self, node: gs.Node, scale: np.ndarray, converted: np.ndarray) -> None:
        rounding = float(np.max(np.abs(converted - scale) / scale))
        if rounding and self.half.element == TensorProto.FLOAT16:
            raise PassError(
                f"{node.name}: its scale is not an FP16 value (rounding would change it by {rounding:.2g}), and the "
                "INT8 codes belong to the scale they were made with; export again"
            )
        self.rounding = max(self.rounding, rounding)

    def _append_cast(self, source: gs.Variable, output: gs.Variable, wanted: int) -> None:
        name = f"{source.name}.{FLOATS[wanted]}"
        self.graph.nodes.append(gs.Node(CAST, name, {"to": wanted}, [source], [output]))
        self.types[output.name] = wanted
        self.changed.append(name)

    def _cast_output(self, tensor: gs.Variable, stated: int) -> None:
        """Put a Cast in front of a graph output of the wrong type, which keeps its name and the type it states."""
        producer = tensor.inputs[0]
        inner = gs.Variable(f"{tensor.name}.{self.half.name}", dtype=tensor.dtype)
        self.types[inner.name] = self.types[tensor.name]
        for reader in list(tensor.outputs):
            _replace(reader, tensor, inner)
        producer.outputs = [inner if output is tensor else output for output in producer.outputs]
        tensor.dtype = helper.tensor_dtype_to_np_dtype(stated)
        self._append_cast(inner, tensor, stated)

    def _reuse_names(self) -> None:
        """Give a converted constant the name of the original that nothing reads any more."""
        taken = set()
        for original, converted in self._constants.values():
            if not original.outputs and original.name not in taken:
                taken.add(original.name)
                converted.name = original.name


def _retype_attributes(node: gs.Node, wanted: int) -> bool:
    """Set the attributes that state a float type; returns whether one changed."""
    changes: dict[str, object] = {}
    for key in ("to", "dtype"):
        if node.attrs.get(key) in FLOATS:
            changes[key] = wanted
    value = node.attrs.get("value")
    if isinstance(value, gs.Constant) and onnx_type(value) in FLOATS and onnx_type(value) != wanted:
        changes["value"] = gs.Constant(value.name, value.values.astype(helper.tensor_dtype_to_np_dtype(wanted)))
    if node.op == "LayerNormalization":
        changes["stash_type"] = FP32  # the default, said aloud: sums and squares stay FP32
    changed = [key for key, new in changes.items() if key == "value" or node.attrs.get(key) != new]
    node.attrs.update(changes)
    return bool(changed)


def _replace(node: gs.Node, old: gs.Tensor, new: gs.Tensor) -> None:
    node.inputs = [new if tensor is old else tensor for tensor in node.inputs]
