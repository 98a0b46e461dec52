"""Large float tables and weights become INT8 codes with a scale per row; small, shared and INT8 ones stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from export.passes.compact_weights import compact_weights, row_codes
from export.passes.gather_codes import gather_codes
from export.unoptimized import open_unoptimized, run

MODEL = """<ir_version: 10, opset_import: ["": 20]>
look_up (int64[batch, sequence] ids) => (float[batch, 256] pooled)
<int64 first = {0}>
{
  words = Gather(table, ids)
  row = Gather<axis = 1>(words, first)
  pooled = Gemm<transB = 1>(row, weight, bias)
}
"""


def look_up(rows: int = 300) -> onnx.ModelProto:
    model = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(0)
    values = {"table": (rows, 256), "weight": (256, 256), "bias": (256,)}
    for name, shape in values.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def computed(model: onnx.ModelProto, output: str) -> np.ndarray:
    model.graph.output.append(onnx.helper.make_tensor_value_info("words", onnx.TensorProto.FLOAT, None))
    ids = np.arange(12).reshape(3, 4)
    return np.asarray(run(open_unoptimized(model.SerializeToString(), Path()), {"ids": ids}, [output])[0])


def test_the_file_shrinks_and_values_move_by_half_a_scale_at_most() -> None:
    graph = gs.import_onnx(look_up())
    assert compact_weights(graph).changed == ("words", "pooled")
    assert compact_weights(graph).changed == ()
    assert gather_codes(graph).changed == ("words",)
    after = gs.export_onnx(graph.cleanup().toposort())
    after.ir_version = 10
    onnx.checker.check_model(after, full_check=True)
    assert len(after.SerializeToString()) < 0.27 * len(look_up().SerializeToString())
    stored = {tensor.name: tensor.data_type for tensor in after.graph.initializer}
    assert stored["table.row.scale"] == onnx.TensorProto.FLOAT16
    before, now = computed(look_up(), "words"), computed(after, "words")
    bound = np.abs(before).max(axis=-1, keepdims=True) / 254 * (1 + 2.0**-10)  # half a scale, which FP16 rounds
    assert (np.abs(now - before) <= bound).all()
    assert np.abs(now - before).max() > 0


def test_small_and_shared_ones_stay() -> None:
    small = gs.import_onnx(look_up(rows=200))
    assert compact_weights(small).changed == ("pooled",)
    shared = look_up()
    shared.graph.node.append(onnx.helper.make_node("Transpose", ["table"], ["decoder"], "decoder"))
    shared.graph.output.append(onnx.helper.make_tensor_value_info("decoder", onnx.TensorProto.FLOAT, [256, 300]))
    result = compact_weights(gs.import_onnx(shared))
    assert result.changed == ("pooled",)
    assert [(item.name, item.reason) for item in result.declined] == [("words", "'table' is also read by other nodes")]


@given(arrays(np.float32, (3, 7), elements=st.floats(-1e4, 1e4, width=32)))
def test_codes_are_symmetric_and_zero_rows_stay_zero(values: np.ndarray) -> None:
    codes, scales = row_codes(values)
    assert codes.min() >= -127
    assert (scales > 0).all() or np.abs(values).max() < 1e-36  # a row of subnormals has no normal scale
    np.testing.assert_array_equal(codes[(values == 0).all(axis=1)], 0)
