"""Dynamic quantization as a placement: no calibration data, run-time input scales in both CPU engines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import torch

from engines.onnxruntime import OnnxRuntimeSettings
from engines.onnxruntime.build import open_session
from export.passes.base import load_graph, save_graph
from export.passes.dynamic_inputs import dynamic_inputs
from export.to_onnx import export_onnx
from export.unoptimized import open_unoptimized, run
from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrate import calibrate
from qdq.errors import ConfigError
from qdq.inject import inject
from qdq.inject.quantizer import folded
from qdq.inject.spec import named_spec
from qdq.loading.model import LoadedModel
from qdq.pipeline.options import CompileOptions


def exported(loaded: LoadedModel, feeds: Any, path: Path) -> Path:
    spec = named_spec("dynamic")
    inject(loaded.model, spec)
    calibrate(loaded.module(), [], spec, algorithm_named("percentile"))
    with folded(loaded.model):
        export_onnx(loaded.module(), feeds, loaded.outputs, path)
    return path


def test_linears_multiply_codes_with_a_scale_of_each_tensor(
    load_tiny: Callable[..., LoadedModel], encode: Callable[..., Any], tmp_path: Path
) -> None:
    loaded = load_tiny("bert", "token-classification", num_hidden_layers=1)
    feeds = encode(loaded)
    graph = load_graph(exported(loaded, feeds, tmp_path / "canonical.onnx"))
    result = dynamic_inputs(graph)
    assert len(result.changed) == 6  # linears of the layer
    save_graph(graph.cleanup().toposort(), tmp_path / "dynamic.onnx")
    again = load_graph(tmp_path / "dynamic.onnx")
    assert dynamic_inputs(again).changed == ()
    operators = [node.op for node in again.nodes]
    assert operators.count("MatMulInteger") == 6
    assert operators.count("DynamicQuantizeLinear") == 4  # q, k and v share theirs
    arrays = {name: tensor.numpy() for name, tensor in feeds.items()}
    (logits,) = run(
        open_unoptimized(onnx.load(tmp_path / "dynamic.onnx").SerializeToString(), tmp_path), arrays, ["logits"]
    )
    with torch.no_grad():
        (weights_only,) = loaded.module()(**feeds)
    # Inputs rounded to 255 steps of their own range: close to weights only, and not the same.
    assert 0 < np.abs(logits - weights_only.numpy()).max() < 0.1 * np.abs(weights_only.numpy()).max()


def test_integer_sums_are_the_float_product_of_the_rounded_input(tmp_path: Path) -> None:
    """Against numpy: one linear, per-channel weight, exactly what DynamicQuantizeLinear is defined as."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, (5, 16)).astype(np.float32)
    codes, scale = rng.integers(-127, 128, (16, 8)).astype(np.int8), rng.uniform(0.01, 0.02, 8).astype(np.float32)
    source, result = gs.Variable("x", np.float32, ["n", 16]), gs.Variable("y", np.float32, ["n", 8])
    weight = gs.Variable("w", np.float32)
    constants = [gs.Constant("c", codes), gs.Constant("s", scale), gs.Constant("z", np.zeros(8, np.int8))]
    nodes = [
        gs.Node("DequantizeLinear", "dq", {"axis": 1}, constants, [weight]),
        gs.Node("MatMul", "m", {}, [source, weight], [result]),
    ]
    graph = gs.Graph(nodes, [source], [result], opset=20)
    assert dynamic_inputs(graph).changed == ("m",)
    save_graph(graph.cleanup().toposort(), tmp_path / "m.onnx")
    # Not unoptimized: without VNNI, ONNX Runtime's plain MatMulInteger of u8 and s8 saturates, and only the options of
    # our sessions prevent it.
    session = open_session(tmp_path / "m.onnx", OnnxRuntimeSettings(1).session_options())
    (y,) = session.run(["y"], {"x": x})
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / step), 0, 255)
    rounded = (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step
    np.testing.assert_allclose(y, rounded @ (codes * scale), rtol=1e-5, atol=1e-4)  # float32 rescaling


def test_tensorrt_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="dynamic needs a CPU target"):
        CompileOptions(placement="dynamic", target="tensorrt").validate()


def test_both_engines_are_built_from_one_checkpoint(
    workplace: Path, qdq: Callable[..., Any], small: tuple[str, ...]
) -> None:
    source = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--out", "dynamic", "--placement", "dynamic")
    builds = {}
    for target in ("openvino", "onnxruntime"):
        ran = qdq("compile", *source, "--target", target, *small)
        assert ran.code == 0, ran.err
        builds[target] = json.loads((workplace / f"dynamic/{target}/build.json").read_text())
        assert json.loads((workplace / f"dynamic/{target}/accuracy.json").read_text())["cosine_mean"] > 0.95
    assert json.loads((workplace / "dynamic/calibration.json").read_text())["activations"] == {}
    assert builds["onnxruntime"]["int8"]["encoder_linear"] == [6, 6]  # read back from the optimized graph
    assert builds["openvino"]["settings"]["dynamic_group"] == 32  # the tiny model's 32 inputs
    assert any("at run time" in item["reason"] for item in builds["openvino"]["int8"]["not_int8"])
