"""The row selection of a pooler moves in front of the last block: fires, declines, same values, once is enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from export.passes.needed_rows import needed_rows
from export.passes.recode_unsigned import recode_unsigned
from export.unoptimized import open_unoptimized, run

BLOCK = """<ir_version: 10, opset_import: ["": 20]>
block (float[batch, sequence, 8] x, float[batch, 1, 1, sequence] mask) => (float[batch, 3] logits)
<float scale = {0.05}, int8 zero = {0}, int64[4] split = {0, 0, 2, 4}, int64[3] merge = {0, 0, 8}, int64 first = {0}>
{
  codes = QuantizeLinear(x, scale, zero)
  values = DequantizeLinear(codes, scale, zero)
  q = MatMul(values, wq)
  k = MatMul(values, wk)
  v = MatMul(values, wv)
  q4 = Reshape(q, split)
  k4 = Reshape(k, split)
  v4 = Reshape(v, split)
  qh = Transpose<perm = [0, 2, 1, 3]>(q4)
  kh = Transpose<perm = [0, 2, 3, 1]>(k4)
  vh = Transpose<perm = [0, 2, 1, 3]>(v4)
  scores = MatMul(qh, kh)
  masked = Add(scores, mask)
  weights = Softmax(masked)
  context = MatMul(weights, vh)
  back = Transpose<perm = [0, 2, 1, 3]>(context)
  merged = Reshape(back, merge)
  projected = MatMul(merged, wo)
  residual = Add(projected, x)
  normal = LayerNormalization(residual, gamma, beta)
  row = Gather<axis = 1>(normal, first)
  logits = MatMul(row, head)
}
"""


def block(text: str = BLOCK) -> onnx.ModelProto:
    """One encoder block and a head, with random weights; every node named like its output."""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    shapes = dict.fromkeys(("wq", "wk", "wv", "wo"), (8, 8)) | {"gamma": (8,), "beta": (8,), "head": (8, 3)}
    for name, shape in shapes.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(model, full_check=True)
    return model


def lowered(model: onnx.ModelProto) -> tuple[gs.Graph, onnx.ModelProto, tuple[str, ...], tuple[str, ...]]:
    graph = gs.import_onnx(model)
    result = needed_rows(graph)
    graph.cleanup().toposort()
    proto = gs.export_onnx(graph)
    proto.ir_version = 10
    onnx.checker.check_model(proto, full_check=True)
    return graph, proto, result.changed, tuple(f"{item.name}: {item.reason}" for item in result.declined)


def computed(model: onnx.ModelProto) -> np.ndarray:
    rng = np.random.default_rng(1)
    mask = np.where(rng.random((3, 1, 1, 5)) < 0.3, -1e4, 0).astype(np.float32)
    mask[..., 0] = 0
    feeds = {"x": rng.normal(size=(3, 5, 8)).astype(np.float32), "mask": mask}
    session = open_unoptimized(model.SerializeToString(), Path())
    return np.asarray(run(session, feeds, ["logits"])[0])


def static(proto: onnx.ModelProto) -> dict[str, list[int]]:
    """Shapes at batch 3 x sequence 5."""
    sizes = {"batch": 3, "sequence": 5}
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.value_info}


def test_the_block_works_on_one_row_and_keys_and_values_on_all() -> None:
    before = block()
    _, after, changed, _ = lowered(block())
    assert changed == ("row",)
    shapes = static(after)
    assert shapes["q"] == shapes["normal"] == shapes["projected"] == [3, 1, 8]
    assert shapes["masked"] == [3, 2, 1, 5]
    assert shapes["k"] == shapes["v"] == [3, 5, 8]
    assert [node.op_type for node in after.graph.node].count("QuantizeLinear") == 2  # all rows for k and v, one for q
    np.testing.assert_allclose(  # 1e-6: a product of one row may sum in another order
        computed(after), computed(before), rtol=1e-6, atol=1e-6
    )


def test_running_it_again_changes_nothing() -> None:
    graph, once, _, _ = lowered(block())
    assert needed_rows(graph).changed == ()
    assert gs.export_onnx(graph.cleanup().toposort()).graph == once.graph


def test_another_row_than_the_first() -> None:
    text = BLOCK.replace("first = {0}", "first = {-1}")
    _, after, changed, _ = lowered(block(text))
    assert changed == ("row",)
    np.testing.assert_allclose(computed(after), computed(block(text)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("(float[batch, 3] logits)", "(float[batch, 3] logits, float[batch, sequence, 8] normal)", "needed in full"),
        (
            "row = Gather<axis = 1>(normal, first)",
            "m = Softmax<axis = 1>(normal)\nrow = Gather<axis = 1>(m, first)",
            "row by",
        ),
        ("residual = Add(projected, x)", "residual = CumSum(projected, first)", "row by row"),
    ],
)
def test_declined_with_the_reason(old: str, new: str, reason: str) -> None:
    _, _, changed, declined = lowered(block(BLOCK.replace(old, new)))
    assert changed == ()
    assert any(reason in text for text in declined)


def test_only_the_inputs_of_linears_become_unsigned() -> None:
    attention = BLOCK.replace("scores = MatMul(qh, kh)", "sc = QuantizeLinear(qh, scale, zero)\n"
        "  sd = DequantizeLinear(sc, scale, zero)\n  scores = MatMul(sd, kh)")  # fmt: skip
    graph = gs.import_onnx(block(attention))
    assert recode_unsigned(graph, linears_only=True).changed == ("codes",)
    assert recode_unsigned(graph, linears_only=True).changed == ()
    after = gs.export_onnx(graph)
    after.ir_version = 10
    np.testing.assert_array_equal(computed(after), computed(block(attention)))
