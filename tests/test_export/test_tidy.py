"""tidy: fires, declines, keeps every value to the bit, and changes nothing the second time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.tidy import SCOPES, tidy
from export.unoptimized import open_unoptimized, run
from qdq.errors import ExportError

Trace = Callable[[], ir.Model]
HERE = Path()  # no external data in these graphs


def tidied(model: ir.Model) -> onnx.ModelProto:
    tidy(model)
    return ir.to_proto(model)


def outputs(model: onnx.ModelProto, feeds: Any) -> Any:
    model.ir_version = 10
    session = open_unoptimized(model.SerializeToString(), HERE)
    return run(session, feeds, [value.name for value in session.get_outputs()])[0]


# The real graph


def test_fires(traced: Trace) -> None:
    model = tidied(traced())
    ops = Counter(node.op_type for node in model.graph.node)
    constants = {tensor.name for tensor in model.graph.initializer}
    reshapes = [node for node in model.graph.node if node.op_type == "Reshape"]
    assert len(reshapes) == sum(node.input[1] in constants for node in reshapes) == 8
    assert len(model.graph.node) < len(traced().graph)
    assert ops["Concat"] == 0  # the chains that computed Reshape shapes
    assert ops["QuantizeLinear"] == 20  # activations only
    codes = [t for t in model.graph.initializer if t.name.endswith(".codes")]
    assert {t.data_type for t in codes} == {TensorProto.INT8}
    assert len(codes) == 12


@pytest.mark.parametrize(("batch", "sequence"), [(1, 5), (3, 16), (2, 7)])
def test_values_stay_to_the_bit(traced: Trace, tiny: Any, batch: int, sequence: int) -> None:
    feeds = tiny.feeds(batch, sequence)
    before = outputs(ir.to_proto(traced()), feeds)
    after = outputs(tidied(traced()), feeds)
    np.testing.assert_array_equal(after, before)


def test_second_run_changes_nothing(traced: Trace) -> None:
    once = tidied(traced())
    twice = tidied(ir.from_proto(once))
    assert twice.SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


def test_no_dead_weights(traced: Trace) -> None:
    model = tidied(traced())
    read = {name for node in model.graph.node for name in node.input}
    assert [t.name for t in model.graph.initializer if t.name not in read] == []
    assert not [t.name for t in model.graph.initializer if t.name.endswith("query.weight")]  # only its codes are left


def test_metadata_and_traces_are_gone(traced: Trace) -> None:
    assert b'File "' in ir.to_proto(traced()).SerializeToString()  # or this test would prove nothing
    model = tidied(traced())
    content = model.SerializeToString()
    assert b'File "' not in content
    assert b"pkg.torch" not in content


# Constant reshapes


def reshaping(source: Sequence[Any], target: Sequence[Any]) -> ir.Model:
    """x [source] -> Reshape with a shape that arrives as an input -> y [target]; allowzero as torch writes it."""
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], name="reshape", allowzero=1)],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, source),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [len(target)]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, target)],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))


@pytest.mark.parametrize(
    ("source", "target", "shape"),
    [
        (["batch", "sequence", 32], ["batch", "sequence", 2, 16], [0, 0, 2, 16]),
        (["batch", "sequence", 2, 16], ["batch", "sequence", 32], [0, 0, 32]),
        (["batch", 1, 4], ["batch", 4], [0, 4]),
    ],
)
def test_a_reshape_that_copies_its_sizes_gets_a_constant(source: Any, target: Any, shape: list[int]) -> None:
    model = tidied(reshaping(source, target))
    (node,) = model.graph.node
    constant = {t.name: t for t in model.graph.initializer}[node.input[1]]
    assert numpy_helper.to_array(constant).tolist() == shape
    assert not node.attribute  # allowzero would make each 0 mean "empty"


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (["batch", "choices", "sequence"], ["rows", "sequence"]),  # a product of two sizes
        (["batch", "sequence", 32], ["sequence", "batch", 32]),  # both there, but not in place
        (["batch", None, 32], ["batch", None, 32]),  # unknown twice is not the same twice
        ([32], [2, "batch"]),  # more dimensions than there are to copy
    ],
)
def test_a_reshape_that_computes_a_size_is_left_alone(source: Any, target: Any) -> None:
    model = tidied(reshaping(source, target))
    assert list(model.graph.node[0].input) == ["x", "shape"]


# What cannot be made canonical

POINT = "layer.weight_quantizer"


def weighted() -> ir.Model:
    """A weight behind its quantizer as it traces: Q, DQ, MatMul."""
    chain = [
        helper.make_node("QuantizeLinear", ["weight", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
    ]
    for node in chain:
        node.metadata_props.add(key=SCOPES, value=f"['layer', '{POINT}', 'op']")
    constants = {
        "weight": np.linspace(-3, 3, 12, dtype=np.float32).reshape(4, 3),
        "scale": np.float32(0.25),
        "zero": np.int8(0),
    }
    graph = helper.make_graph(
        [*chain, helper.make_node("MatMul", ["x", "dq"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))


def test_a_scale_computed_at_run_time_is_an_error() -> None:
    model = weighted()
    graph = model.graph
    scale = graph.initializers.pop("scale")
    graph.inputs.append(scale)
    scale.const_value = None
    # A float weight in front of a Q whose scale is an input: what calibration is there to prevent.
    with pytest.raises(ExportError, match=r"layer\.weight_quantizer\.quantize: input 1 is computed at run time"):
        tidy(model)
