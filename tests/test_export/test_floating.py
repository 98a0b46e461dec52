"""The floating-point graph that comes out of the quantized model's trace."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from export.emitter import clean
from export.floating import without_quantizers
from export.to_onnx import FloatGraph, export_onnx
from qdq.errors import ExportError
from qdq.inject.blocks import ResidualOutput
from qdq.inject.quantizer import QuantLinear, folded

from .conftest import Tiny, as_tensors


def test_it_computes_the_model_without_quantizers_or_treatments(tiny: Tiny, tmp_path: Path) -> None:
    plain, treated = copy.deepcopy(tiny.module), copy.deepcopy(tiny.module)
    for part in plain.modules():
        if hasattr(part, "disable_quant"):
            part.disable_quant()
    feeds = tiny.feeds(4, 12)
    with torch.no_grad():
        expected = plain(**as_tensors(feeds))[0].numpy()
    for linear in treated.modules():
        if isinstance(linear, QuantLinear) and linear._input_quantizer is not None:
            linear.treat("_smoothing", torch.rand(linear.in_features) + 0.5)
            linear.treat("_bias_shift", torch.rand(linear.out_features))
    for add in treated.modules():
        if isinstance(add, ResidualOutput):
            add.treat("_channel_scale", torch.rand_like(add.LayerNorm.weight.detach()) + 0.5)
    left = treated.get_submodule("model.bert.encoder.layer.0.intermediate.dense")  # treated, then left float by auto
    assert isinstance(left, QuantLinear)
    left.treat("_column_scale", torch.rand(left.in_features) + 0.5)
    for point in (left._input_quantizer, left._weight_quantizer):
        point.disable_quant()
    path = tmp_path / "model.fp32.onnx"
    with folded(treated.model), folded(plain.model):
        parameters = {name: tensor.numpy() for name, tensor in plain.state_dict().items()}
        floating = FloatGraph(path, parameters)
        export_onnx(treated, as_tensors(feeds), ["logits"], tmp_path / "model.qdq.onnx", floating=floating)
    graph = onnx.load(path).graph
    assert {node.op_type for node in graph.node} & {"QuantizeLinear", "DequantizeLinear"} == set()
    assert not any(
        ".scale" in tensor.name or "smoothing" in tensor.name or "_channel_scale" in tensor.name
        for tensor in graph.initializer
    )
    weights = [tensor for tensor in graph.initializer if tensor.name.endswith("query.MatMul.input_1")]
    assert len(weights) == 2 and not any(
        node.op_type == "Transpose" and node.input[0] in weights for node in graph.node
    )
    (actual,) = ort.InferenceSession(path).run(None, feeds)
    np.testing.assert_allclose(actual, expected, atol=2e-6)
    quantized = str(onnx.load(tmp_path / "model.qdq.onnx").graph.initializer)
    assert "smoothing" in quantized and "_channel_scale" in quantized


def test_parameters_of_another_model_are_refused(tiny: Tiny, traced) -> None:  # type: ignore[no-untyped-def]
    name = next(name for name in traced().graph.initializers if name.endswith("query.weight"))
    with pytest.raises(ExportError, match=r"query\.weight: \(3, 3\) in the floating-point model"):
        without_quantizers(traced(), {name: np.ones((3, 3), np.float32)}, clean)
