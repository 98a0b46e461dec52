"""What ONNX Runtime's engine file holds: fused linears and attention, with the values of the graph they replace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.onnxruntime import OnnxRuntimeRunner, OnnxRuntimeSettings
from engines.onnxruntime.fuse import fuse

from .graphs import lowered

ONE_THREAD = OnnxRuntimeSettings(threads=1)
ATTENTION_MATMUL = "encoder.layer.0.attention.self.MatMul"


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def outputs(model: onnx.ModelProto | Path, folder: Path, feeds: Any) -> Any:
    path = model if isinstance(model, Path) else folder / "fused.onnx"
    if isinstance(model, onnx.ModelProto):
        onnx.save(model, path)
    return OnnxRuntimeRunner(path, ONE_THREAD)(feeds)["last_hidden_state"]


def test_one_operator_per_linear_and_one_per_attention(write_encoder: Callable[..., Path]) -> None:
    model, fusions = fuse(lowered(write_encoder()))
    found = operators(model)
    assert (found.count("MatMulIntegerToFloat"), found.count("MultiHeadAttention")) == (6, 1)
    assert not {"MatMul", "Softmax", "DequantizeLinear"} & set(found)
    # One per linear input (q, k and v share one) and one for the mask.
    assert found.count("QuantizeLinear") == 5
    (attention,) = [node.name for node in model.graph.node if node.op_type == "MultiHeadAttention"]
    assert ATTENTION_MATMUL in attention.split("+")
    assert (fusions["linears"], fusions["attention"], fusions["declined"]) == (6, 1, [])


@pytest.mark.parametrize("operands", [(), ("q", "k"), ("q", "k", "softmax", "v")])
def test_values_stay_those_of_the_graph(
    write_encoder: Callable[..., Path], make_feeds: Any, tmp_path: Path, operands: tuple[str, ...]
) -> None:
    """Against the same graph without attention quantizers, run as ONNX Runtime fuses it by itself.

    Float sums in another order move a value across a rounding border now and then; see test_onnxruntime for 0.05.
    """
    reference = lowered(write_encoder("plain.onnx", operands=()))
    model, _ = fuse(lowered(write_encoder("quantized.onnx", operands=operands)))
    for shape in ((4, 16), (1, 1), (3, 70)):
        feeds = make_feeds(*shape)
        expected, result = outputs(reference, tmp_path, feeds), outputs(model, tmp_path, feeds)
        np.testing.assert_allclose(result, expected, rtol=0, atol=0.05)
        assert np.abs(result - expected).mean() < 0.002


def test_unsigned_weights_give_the_same_values(
    write_encoder: Callable[..., Path],
    make_feeds: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For a CPU whose s8 products saturate: every linear, the mask's row in the key included, and nothing printed."""
    monkeypatch.setattr("engines.onnxruntime.unsigned.MOST_GROWTH", 0)
    graph = lowered(write_encoder())
    (signed, _), (unsigned, fusions) = fuse(graph), fuse(graph, saturate=True)
    assert (fusions["linears"], fusions["attention"]) == (6, 1)
    assert fusions["weights"] == {"u8": 6, "fitted": 0}
    kinds = [
        {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2}
        for model in (signed, unsigned)
    ]
    assert (TensorProto.INT8 in kinds[0], TensorProto.INT8 in kinds[1], TensorProto.UINT8 in kinds[1]) == (
        True,
        False,
        True,
    )
    feeds = make_feeds(4, 16)
    np.testing.assert_array_equal(outputs(unsigned, tmp_path, feeds), outputs(signed, tmp_path, feeds))
    assert capsys.readouterr().out == ""


def test_padding_is_invisible(write_encoder: Callable[..., Path], make_feeds: Any, tmp_path: Path) -> None:
    """Other ids where the mask is 0 change no row of a real token, not by one bit."""
    model, fusions = fuse(lowered(write_encoder()))
    assert fusions["attention"]
    feeds = make_feeds(4, 30)
    noisy = {**feeds, "input_ids": np.where(feeds["attention_mask"], feeds["input_ids"], 7)}
    real = feeds["attention_mask"].astype(bool)
    assert not (noisy["input_ids"] == feeds["input_ids"]).all()
    before, after = outputs(model, tmp_path, feeds), outputs(model, tmp_path, noisy)
    np.testing.assert_array_equal(before[real], after[real])
    unmasked = outputs(model, tmp_path, {**feeds, "attention_mask": np.ones_like(feeds["attention_mask"])})
    assert np.abs(unmasked[real] - before[real]).max() > 0.01  # the mask does something


def test_a_long_row_of_padding_only_gives_finite_values(
    write_encoder: Callable[..., Path], make_feeds: Any, tmp_path: Path
) -> None:
    model, _ = fuse(lowered(write_encoder()))
    feeds = make_feeds(2, 40)
    feeds["attention_mask"][0] = 0
    assert np.isfinite(outputs(model, tmp_path, feeds)).all()


@pytest.mark.parametrize("name", ["query", "key"])
def test_float_projections_leave_attention_as_it_is(write_encoder: Callable[..., Path], name: str) -> None:
    """The mask rides on the INT8 linears of query and key."""
    point = f"attention.self.{name}"
    model, fusions = fuse(lowered(write_encoder(float_inputs=[point], float_weights=[point])))
    assert operators(model).count("MultiHeadAttention") == 0
    softmax = ATTENTION_MATMUL.replace("MatMul", "Softmax")
    assert fusions["declined"] == [{"name": softmax, "reason": "query or key is no INT8 linear"}]


def edited(path: Path, edit: Callable[[onnx.GraphProto], None]) -> Path:
    model = onnx.load(path)
    edit(model.graph)
    onnx.save(model, path)
    return path


def low_mask(value: float) -> Callable[[onnx.GraphProto], None]:
    def edit(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.name == "graph.low":
                tensor.CopyFrom(numpy_helper.from_array(np.float32(value), "graph.low"))

    return edit


def constant_mask(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), "nothing"))
    for node in graph.node:
        node.input[:] = ["nothing" if name == "graph.Mul" else name for name in node.input]


def observed_scores(graph: onnx.GraphProto) -> None:
    graph.output.append(helper.make_tensor_value_info(ATTENTION_MATMUL, TensorProto.FLOAT, [None] * 4))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (low_mask(3.0), "its mask is not [B, 1, 1, S] with 0 for tokens and a finite value for padding"),
        (low_mask(-1e38), "its mask is not [B, 1, 1, S] with 0 for tokens and a finite value for padding"),
        (constant_mask, "it is not the softmax of one product and a mask"),
    ],
    ids=["positive", "huge", "constant"],
)
def test_other_masks_are_declined(
    write_encoder: Callable[..., Path], edit: Callable[[onnx.GraphProto], None], reason: str
) -> None:
    model, fusions = fuse(edited(lowered(write_encoder()), edit))
    assert "MultiHeadAttention" not in operators(model)
    assert "Softmax" in operators(model)
    found = {item["reason"] for item in fusions["declined"]}
    assert found <= {reason, "its mask is a constant"} and found


def test_a_weight_with_a_zero_point_is_declined(write_encoder: Callable[..., Path]) -> None:
    def shift(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if "output.dense.weight_quantizer.zero_point" in tensor.name:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.int8(1), tensor.name))

    model, fusions = fuse(edited(lowered(write_encoder()), shift))
    assert operators(model).count("MatMulIntegerToFloat") == 4
    assert {item["reason"] for item in fusions["declined"]} == {"its weight is not coded in symmetric s8"}
