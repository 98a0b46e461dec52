"""The structural check accepts the real graph and names each way of breaking it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.check import CheckReport, check_file
from qdq.errors import ExportError

LAYER = "bert.encoder.layer.0"
ACTIVATION = f"{LAYER}.attention.self.query.input_quantizer"
SECOND = f"{LAYER}.intermediate.dense.input_quantizer"
WEIGHT = f"{LAYER}.attention.self.query.weight_quantizer"


@pytest.fixture
def model(canonical: Path) -> ModelProto:
    return onnx.load(canonical)


def check(model: ModelProto, expected: Sequence[str] | None = None) -> CheckReport:
    """Check a model through a file of its own."""
    with TemporaryDirectory() as folder:
        onnx.save(model, path := Path(folder) / "model.onnx")
        return check_file(path, expected)


def node(model: ModelProto, name: str) -> NodeProto:
    found: NodeProto = next(node for node in model.graph.node if node.name == name)
    return found


def tensor(model: ModelProto, name: str) -> TensorProto:
    found: TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return found


def put(model: ModelProto, name: str, value: Any) -> None:
    """Replace the value of an initializer."""
    tensor(model, name).CopyFrom(numpy_helper.from_array(np.asarray(value), name))


def insert(model: ModelProto, new: NodeProto, before: str) -> None:
    position = next(i for i, node in enumerate(model.graph.node) if node.name == before)
    model.graph.node.insert(position, new)


# The real graph


def test_accepts_the_real_graph(model: ModelProto, tiny: Any) -> None:
    assert check(model, tiny.points) == check(model) == CheckReport(quantize=20, weights=12)


def test_points_that_the_exporter_merged_count_as_served(model: ModelProto, tiny: Any) -> None:
    names = {node.name for node in model.graph.node}
    merged = [f"attention.self.{linear}.input_quantizer" for linear in ("key", "value")]
    merged += ["attention.output.add_residual_input_quantizer", "output.add_residual_input_quantizer"]
    for point in merged:
        assert f"{LAYER}.{point}" in tiny.points
        assert f"{LAYER}.{point}.dequantize" not in names


# Corruptions, each with the sentence it must give

Corrupt = Callable[[ModelProto], None]


def wrong_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 21


def second_domain(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def wrong_ir_version(model: ModelProto) -> None:
    model.ir_version = 9


def unsigned_zero_point(model: ModelProto) -> None:
    put(model, f"{ACTIVATION}.zero_point", np.uint8(128))


def shifted_zero_point(model: ModelProto) -> None:
    put(model, f"{ACTIVATION}.zero_point", np.int8(3))


def no_zero_point(model: ModelProto) -> None:
    for part in ("quantize", "dequantize"):
        del node(model, f"{ACTIVATION}.{part}").input[2]


def per_channel_activation(model: ModelProto) -> None:
    put(model, f"{ACTIVATION}.scale", np.full(32, 0.5, np.float32))
    put(model, f"{ACTIVATION}.zero_point", np.zeros(32, np.int8))


def wrong_axis(model: ModelProto) -> None:
    weight = f"{LAYER}.intermediate.dense.weight_quantizer"  # [32, 64], so axis 0 has another size
    node(model, f"{weight}.dequantize").attribute[0].i = 0


def scale_not_fp16(model: ModelProto) -> None:
    put(model, f"{ACTIVATION}.scale", np.float32(0.1))


def negative_scale(model: ModelProto) -> None:
    put(model, f"{ACTIVATION}.scale", np.float32(-0.5))


def infinite_scale(model: ModelProto) -> None:
    scale = numpy_helper.to_array(tensor(model, f"{WEIGHT}.scale")).copy()
    scale[3] = np.inf
    put(model, f"{WEIGHT}.scale", scale)


def dynamic_scale(model: ModelProto) -> None:
    insert(model, helper.make_node("Abs", [f"{ACTIVATION}.scale"], ["s"], name="dynamic"), f"{ACTIVATION}.quantize")
    for part in ("quantize", "dequantize"):
        node(model, f"{ACTIVATION}.{part}").input[1] = "s"


def half_scale(model: ModelProto) -> None:
    put(model, f"{ACTIVATION}.scale", np.float16(0.5))


def unequal_pair(model: ModelProto) -> None:
    node(model, f"{ACTIVATION}.dequantize").input[1] = f"{SECOND}.scale"


def float_weight_behind_dq(model: ModelProto) -> None:
    codes = numpy_helper.to_array(tensor(model, f"{WEIGHT}.codes"))
    put(model, f"{WEIGHT}.codes", codes.astype(np.int32))


def codes_read_by_another(model: ModelProto) -> None:
    cast = helper.make_node("Cast", [f"{ACTIVATION}.quantize"], ["cast"], name="stranger", to=TensorProto.FLOAT)
    insert(model, cast, f"{LAYER}.attention.self.query.MatMul")
    node(model, f"{LAYER}.attention.self.query.MatMul").input[0] = "cast"


def quantized_twice(model: ModelProto) -> None:
    cast = helper.make_node("Cast", [f"{SECOND}.quantize"], ["integers"], name="to_int", to=TensorProto.INT32)
    insert(model, cast, f"{SECOND}.dequantize")
    again = helper.make_node("QuantizeLinear", ["integers", *node(model, f"{SECOND}.quantize").input[1:]], ["again"])
    again.name = "again.quantize"
    insert(model, again, f"{SECOND}.dequantize")
    node(model, f"{SECOND}.dequantize").input[0] = "again"


def written_out_gelu(model: ModelProto) -> None:
    node(model, f"{LAYER}.intermediate.intermediate_act_fn.Gelu").op_type = "Erf"
    del node(model, f"{LAYER}.intermediate.intermediate_act_fn.Gelu").attribute[:]


def written_out_layer_norm(model: ModelProto) -> None:
    norm = node(model, f"{LAYER}.output.LayerNorm.LayerNormalization")
    mean = helper.make_node("ReduceMean", [norm.input[0]], ["mean"], name="mean", keepdims=1)
    insert(model, mean, norm.name)
    norm.CopyFrom(helper.make_node("Sub", [norm.input[0], "mean"], list(norm.output), name=norm.name))


def left_over_identity(model: ModelProto) -> None:
    gather = node(model, "bert.pooler.Gather")
    insert(model, helper.make_node("Identity", [gather.input[0]], ["same"], name="renaming"), gather.name)
    gather.input[0] = "same"


def dead_initializer(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "old.weight"))


def dead_node(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Shape", ["input_ids"], ["unread"], name="leftover.Shape"))


def stack_trace(model: ModelProto) -> None:
    model.graph.node[3].metadata_props.add(key="trace", value='File "/home/me/model.py"')


def doc_string(model: ModelProto) -> None:
    model.doc_string = "made on a Tuesday"


def fixed_batch(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def fixed_output(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4


def nameless_node(model: ModelProto) -> None:
    model.graph.node[0].name = ""


def doubled_name(model: ModelProto) -> None:
    model.graph.node[1].name = model.graph.node[2].name


def unordered(model: ModelProto) -> None:
    first = NodeProto()
    first.CopyFrom(model.graph.node[0])
    del model.graph.node[0]
    model.graph.node.append(first)


@pytest.mark.parametrize(
    ("corrupt", "sentence"),
    [
        (wrong_opset, "opset_import is {'': 21}; export with opset 20"),
        (second_domain, "'com.microsoft': 1"),
        (wrong_ir_version, "ir_version is 9; save with 10"),
        (unsigned_zero_point, f"{ACTIVATION}.quantize: its zero-point is not INT8 zero (uint8)"),
        (shifted_zero_point, f"{ACTIVATION}.dequantize: its zero-point is not INT8 zero (int8)"),
        (no_zero_point, f"{ACTIVATION}.quantize: has no constant zero-point"),
        (per_channel_activation, f"{ACTIVATION}.quantize: a per-channel activation scale [32]"),
        (wrong_axis, "weight_quantizer.dequantize: 64 scales on axis 0 of a weight of shape [32, 64]"),
        (scale_not_fp16, f"{ACTIVATION}.quantize: its scale '{ACTIVATION}.scale' is not an FP16 value"),
        (negative_scale, f"'{ACTIVATION}.scale' is not positive and finite"),
        (infinite_scale, f"'{WEIGHT}.scale' is not positive and finite"),
        (dynamic_scale, f"{ACTIVATION}.quantize: its scale 's' is computed at run time"),
        (half_scale, f"{ACTIVATION}.quantize: its scale is float16"),
        (unequal_pair, f"{ACTIVATION}.dequantize: scale or zero-point differ from those of {ACTIVATION}.quantize"),
        (float_weight_behind_dq, f"{WEIGHT}.dequantize: '{WEIGHT}.codes' is neither the output of a Q nor an INT8"),
        (codes_read_by_another, f"{ACTIVATION}.quantize: its codes are read by stranger"),
        (quantized_twice, "again.quantize: quantizes 'integers' of type INT32"),
        (written_out_gelu, "intermediate_act_fn.Gelu: Erf is left in the graph: GELU is written out"),
        (written_out_layer_norm, "mean: LayerNormalization is written out"),
        (left_over_identity, "renaming: Identity is left in the graph"),
        (dead_initializer, "initializer 'old.weight': nothing reads it"),
        (dead_node, "leftover.Shape: nothing reads its result"),
        (stack_trace, "carries metadata or a doc string"),
        (doc_string, "the model: carries metadata or a doc string"),
        (fixed_batch, "input 'input_ids': dimension 0 is 4; export with dynamic batch and sequence"),
        (fixed_output, "output 'logits': the batch is fixed at 4"),
        (nameless_node, "has no name; tidy the graph"),
        (doubled_name, "two nodes have this name"),
        (unordered, "onnx.checker: Nodes in a graph must be topologically sorted"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_names_what_is_broken(model: ModelProto, corrupt: Corrupt, sentence: str) -> None:
    corrupt(model)
    with pytest.raises(ExportError) as caught:
        check(model)
    assert sentence in str(caught.value)


def test_lists_every_problem_at_once(model: ModelProto) -> None:
    for corrupt in (wrong_ir_version, scale_not_fp16, dead_initializer):
        corrupt(model)
    with pytest.raises(ExportError) as caught:
        check(model)
    text = str(caught.value)
    # The pair that shares the scale is named twice.
    assert "breaks 4 rule(s) of the canonical graph" in text
    assert all(part in text for part in ("ir_version is 9", "not an FP16 value", "'old.weight'"))


# Points


def test_a_placed_point_that_is_not_there_is_named(model: ModelProto, tiny: Any) -> None:
    absent = "classifier.weight_quantizer"
    with pytest.raises(ExportError, match=r"classifier\.weight_quantizer: placed, but no QuantizeLinear"):
        check(model, [*tiny.points, absent])


def test_a_point_the_placement_does_not_know_is_named(model: ModelProto, tiny: Any) -> None:
    expected = [point for point in tiny.points if point != SECOND]
    with pytest.raises(ExportError, match=rf"{SECOND}\.quantize: not a point of placement\.json"):
        check(model, expected)


def test_bypassed_quantizer_is_not_taken_for_shared(model: ModelProto, tiny: Any) -> None:
    matmul = node(model, f"{LAYER}.attention.self.key.MatMul")
    matmul.input[0] = node(model, f"{ACTIVATION}.quantize").input[0]  # the float tensor
    with pytest.raises(ExportError, match=r"attention\.self\.key\.input_quantizer: placed, but no QuantizeLinear"):
        check(model, tiny.points)


# Files


def test_a_file_that_is_not_onnx_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\xff\xfe not a graph")
    with pytest.raises(ExportError, match=r"m\.onnx: cannot be read as ONNX"):
        check_file(path)


def test_an_absent_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be read as ONNX"):
        check_file(tmp_path / "absent.onnx")
