"""Pass: INT64 graph inputs become INT32, half the bytes to copy to the device for the same token ids."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from export.passes.base import PassResult
from export.passes.element_types import MOVING, Types, allowed_types, element_types, formals, schema_of

INT32, INT64 = TensorProto.INT32, TensorProto.INT64
CAST = "Cast"


def narrow_inputs(graph: gs.Graph) -> PassResult:
    """Narrow the inputs.

    Before: ``input_ids: INT64 -> Gather``, ``input_ids: INT64 -> Equal(INT64 constant)``, ``input_ids: INT64 -> Add``.
    After: ``input_ids: INT32 -> Gather``, ``input_ids: INT32 -> Equal(INT32 constant)``,
    ``input_ids: INT32 -> Cast(INT64) -> Add``. One Cast per tensor, and only where an operator takes no INT32 or
    computes with the number (a result could be a shape, or exceed INT32); what only moves values moves INT32.
    Leaves alone: inputs of another type, every tensor computed from them beyond that.
    """
    inputs = [tensor for tensor in graph.inputs if tensor.dtype == np.int64]
    narrowing = _Narrowing(graph, element_types(graph), {tensor.name for tensor in inputs})
    for node in list(graph.nodes) if inputs else ():
        narrowing.visit(node)
    for tensor in inputs:
        tensor.dtype = np.dtype(np.int32)
    return PassResult((*(tensor.name for tensor in inputs), *narrowing.changed))


@dataclass
class _Narrowing:
    graph: gs.Graph
    types: Types
    narrow: set[str]  # names of tensors that are INT32 now
    changed: list[str] = field(default_factory=list)
    casts: dict[str, gs.Variable] = field(default_factory=dict)

    def visit(self, node: gs.Node) -> None:
        """Let a node read its narrow operands, or put a Cast in front of it."""
        schema = schema_of(node, self.graph.opset)
        parameters = formals(schema.inputs, len(node.inputs))
        is_output = any(tensor is output for tensor in node.outputs for output in self.graph.outputs)
        results = {formal.type_str for formal in formals(schema.outputs, len(node.outputs))}
        for variable in {parameter.type_str: None for parameter in parameters}:
            operands = [index for index, parameter in enumerate(parameters) if parameter.type_str == variable]
            if not any(node.inputs[index].name in self.narrow for index in operands):
                continue
            moves = variable not in results or (node.op in MOVING and not is_output)
            takes = INT32 in allowed_types(schema, parameters[operands[0]])
            if takes and moves and all(self._can_narrow(node.inputs[index]) for index in operands):
                self._narrow(node, operands)
                if variable in results:
                    self.narrow.update(tensor.name for tensor in node.outputs)
            else:
                self._widen(node, operands)

    def _can_narrow(self, tensor: gs.Tensor) -> bool:
        if tensor.is_empty() or tensor.name in self.narrow:
            return True
        return isinstance(tensor, gs.Constant) and bool((tensor.values == tensor.values.astype(np.int32)).all())

    def _narrow(self, node: gs.Node, operands: list[int]) -> None:
        for index in operands:
            tensor = node.inputs[index]
            if isinstance(tensor, gs.Constant):
                name = tensor.name if len(tensor.outputs) == 1 else f"{tensor.name}.int32"
                node.inputs[index] = gs.Constant(name, tensor.values.astype(np.int32))
        for tensor in node.outputs:
            if self.types[tensor.name] == INT64 and node.op in MOVING:
                tensor.dtype = np.dtype(np.int32)
        self.changed.append(node.name)

    def _widen(self, node: gs.Node, operands: list[int]) -> None:
        for index in operands:
            tensor = node.inputs[index]
            if tensor.name not in self.narrow:
                continue
            if tensor.name not in self.casts:
                name = f"{tensor.name}.int64"
                self.casts[tensor.name] = gs.Variable(name, dtype=np.dtype(np.int64))
                self.graph.nodes.append(gs.Node(CAST, name, {"to": INT64}, [tensor], [self.casts[tensor.name]]))
                self.changed.append(name)
            node.inputs[index] = self.casts[tensor.name]
