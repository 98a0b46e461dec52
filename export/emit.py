"""A recording as an ONNX graph: each torch function becomes the nodes that torch's exporter would write for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from export.emitter import Emitter, Form
from export.forms import ARITHMETIC
from export.forms_shapes import SHAPES
from export.names import IR_VERSION
from export.record import Recording, Unrecorded

FORMS: Mapping[str, Form] = {**ARITHMETIC, **SHAPES}  # by the name of the torch function


def emit(recording: Recording, outputs: Sequence[str]) -> ir.Model:
    """Write `recording` as a model; `outputs` are the names of its results. `clean` and `export.tidy` come after.

    Raises Unrecorded for a function without a form.
    """
    emitter = Emitter(recording)
    for call in recording.calls:
        if call.function not in FORMS:
            raise Unrecorded(f"{call.module or 'the module'} calls {call.function}, which has no form here")
        emitter.module = call.module
        emitter.made(call, FORMS[call.function](emitter, call))
    for name, number in zip(outputs, recording.outputs, strict=True):
        value = emitter.values[number]
        if value.is_graph_output() or value.is_graph_input():
            raise Unrecorded("an output is an input, or another output")
        value.name = name
        emitter.graph.outputs.append(value)
    return ir.Model(emitter.graph, ir_version=IR_VERSION, producer_name="export.emit")
