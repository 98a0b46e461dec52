"""No sum saturates: codes over their full range through every engine we build, on whatever CPU this runs.

Each engine is built twice: for this CPU, and for one whose products saturate in pairs. The second is right on every
CPU. Expected values are integer sums in numpy.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.fitting import fitting_weights
from engines.instructions import LARGEST_PAIR, Int8Sums, int8_sums
from engines.onnxruntime import OnnxRuntimeRunner, OnnxRuntimeSettings
from engines.onnxruntime import build as build_onnxruntime
from engines.onnxruntime.unsigned import MOST_GROWTH
from engines.openvino import OpenVINORunner, OpenVINOSettings
from engines.openvino import build as build_openvino
from engines.types import BuiltEngine, MatmulNames
from export.passes import LowerOptions, lower
from qdq.errors import BuildError

LINEAR = "encoder.layer.0.output.dense.MatMul"
NAMES = MatmulNames((LINEAR,), ())
STEP, BIAS = 0.25, 1024.0  # powers of two: products and sums with them are exact
ROWS, COLUMNS = 24, 64
EXACT, PAIRS = Int8Sums(("avx512_vnni",), saturate=False), Int8Sums(("avx2",), saturate=True)
KINDS = pytest.mark.parametrize("sums", [int8_sums(), PAIRS], ids=["this CPU", "saturating"])
WEIGHTS = pytest.mark.parametrize("weights", ["highest", "lowest", "mixed", "one scale"])


def codes_of(kind: str, inner: int) -> NDArray[np.int8]:
    """Weights [inner, COLUMNS]: all at an end of the range, or anything in it."""
    if kind == "usual":  # as trained weights are: few are large
        return np.random.default_rng(0).normal(0, 30, (inner, COLUMNS)).clip(-127, 127).round().astype(np.int8)
    if kind in ("highest", "lowest"):
        return np.full((inner, COLUMNS), 127 if kind == "highest" else -127, np.int8)
    return np.random.default_rng(0).integers(-127, 128, (inner, COLUMNS)).astype(np.int8)


def scale_of(kind: str) -> NDArray[np.float32]:
    return np.float32(0.5) * np.ones(() if kind == "one scale" else COLUMNS, np.float32)


def write_linear(folder: Path, kind: str, inner: int, dynamic: bool) -> Path:
    """A canonical graph: codes [rows, inner] as ids, times STEP, through one linear to y.

    With `dynamic` the linear's input is left to be quantized at run time.
    """
    scale = scale_of(kind)
    constants = {
        "step": np.float32(STEP),
        "zero": np.int8(0),
        "codes": codes_of(kind, inner),
        "scale": scale,
        "bias": np.full(COLUMNS, BIAS, np.float32),
        "zeros": np.zeros(scale.shape, np.int8),
    }
    values = [
        helper.make_node("Cast", ["ids"], ["floats"], name="floats", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "step"], ["x"], name="values"),
    ]
    pair = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["dq"], name="dequantize"),
    ]
    attributes = {"axis": 1} if scale.ndim else {}
    weight = helper.make_node("DequantizeLinear", ["codes", "scale", "zeros"], ["w"], name="weight", **attributes)
    linear = [
        helper.make_node("MatMul", ["x" if dynamic else "dq", "w"], [LINEAR], name=LINEAR),
        helper.make_node("Add", [LINEAR, "bias"], ["y"], name="add"),
    ]
    graph = helper.make_graph(
        [*values, *([] if dynamic else pair), weight, *linear],
        "linear",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows", "inputs"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", COLUMNS])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "canonical.onnx"
    )
    return folder / "canonical.onnx"


def inputs(inner: int) -> NDArray[np.int64]:
    """Codes [ROWS, inner] of the activations: all at an end of the range, or anything in it."""
    codes = np.random.default_rng(1).integers(-127, 128, (ROWS, inner))
    codes[0], codes[1], codes[2:8] = -128, 127, 126
    return codes


def product(
    weights: NDArray[np.int8], scale: NDArray[np.floating[Any]], codes: NDArray[np.int64]
) -> NDArray[np.float32]:
    return (STEP * (codes @ weights.astype(np.int64)) * scale + BIAS).astype(np.float32)


def built(target: str, folder: Path, kind: str, inner: int, sums: Int8Sums, dynamic: bool = False) -> BuiltEngine:
    canonical = write_linear(folder, kind, inner, dynamic)
    lower(canonical, target, folder / target, options=LowerOptions(dynamic=dynamic))
    graph = folder / target / "model.onnx"
    if target == "onnxruntime":
        return build_onnxruntime(graph, graph.parent, OnnxRuntimeSettings(1, sums=sums), NAMES)
    settings = OpenVINOSettings(1, dynamic_group=32 if dynamic else 0, sums=sums)
    return build_openvino(graph, graph.parent, settings, NAMES)


def int8_linears(engine: BuiltEngine) -> Any:
    assert engine.int8 is not None
    return engine.int8.encoder_linear


# --- results --------------------------------------------------------------------------------------------------------


@KINDS
@WEIGHTS
@pytest.mark.parametrize("inner", [64, 67])
def test_onnxruntime_sums_exactly(tmp_path: Path, weights: str, inner: int, sums: Int8Sums) -> None:
    engine = built("onnxruntime", tmp_path, weights, inner, sums)
    assert int8_linears(engine) == (1, 1)
    ids = inputs(inner)
    result = OnnxRuntimeRunner(engine.files[0], OnnxRuntimeSettings(1))({"ids": ids})["y"]
    np.testing.assert_array_equal(result, product(codes_of(weights, inner), scale_of(weights), ids))


@pytest.mark.parametrize("inner", [64, 67])
def test_onnxruntime_fits_weights_that_hardly_change(tmp_path: Path, inner: int) -> None:
    engine = built("onnxruntime", tmp_path, "usual", inner, PAIRS)
    assert engine.settings["fused"]["weights"] == {"u8": 0, "fitted": 1}
    codes, growth = fitting_weights(codes_of("usual", inner), shared=False)
    assert 1 < (growth**2).mean() <= MOST_GROWTH
    ids = inputs(inner)
    expected = product(codes, scale_of("usual") * growth, ids)
    for options in (OnnxRuntimeSettings(1), OnnxRuntimeSettings(1, sums=PAIRS)):
        result = OnnxRuntimeRunner(engine.files[0], options)({"ids": ids})["y"]
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@KINDS
@WEIGHTS
@pytest.mark.parametrize("inner", [64, 67])
@pytest.mark.parametrize("static", [False, True], ids=["any shape", "one shape"])
def test_openvino_sums_exactly(tmp_path: Path, weights: str, inner: int, sums: Int8Sums, static: bool) -> None:
    """The weights are those of the graph, or for a CPU that saturates the ones that fit, which are close to them."""
    engine = built("openvino", tmp_path, weights, inner, sums)
    assert int8_linears(engine) == (1, 1)
    codes, growth = codes_of(weights, inner), np.ones(COLUMNS)
    if sums.saturate:
        codes, growth = fitting_weights(codes, shared=weights == "one scale")
    ids = inputs(inner)
    expected = product(codes, scale_of(weights) * growth, ids)
    result = OpenVINORunner(engine.files[0], OpenVINOSettings(1, shape=ids.shape if static else None))({"ids": ids})[
        "y"
    ]
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@KINDS
@WEIGHTS
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_dynamic_quantization_sums_exactly(tmp_path: Path, weights: str, target: str, sums: Int8Sums) -> None:
    """Scales made at run time: the input spans 255 steps, so its codes are what they are in the graphs above.

    OpenVINO shares a scale among 32 inputs, which moves a value by half a step; saturation would move sums by far more.
    """
    inner = 64
    engine = built(target, tmp_path, weights, inner, sums, dynamic=True)
    ids = inputs(inner)
    expected = product(codes_of(weights, inner), scale_of(weights), ids)
    if target == "onnxruntime":
        result = OnnxRuntimeRunner(engine.files[0], OnnxRuntimeSettings(1))({"ids": ids})["y"]
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    else:
        result = OpenVINORunner(engine.files[0], OpenVINOSettings(1))({"ids": ids})["y"]
        assert np.abs(result - expected).max() < 0.01 * np.abs(expected).max()


def test_weights_that_fit_stay_as_close_as_they_can() -> None:
    codes = np.random.default_rng(2).integers(-127, 128, (65, 500)).astype(np.int8)
    codes[:, 0] = np.tile([100, 28], 33)[:65]  # 128: fits as it is
    codes[:, 1] = np.tile([100, 29], 33)[:65]
    codes[:, 2] = np.tile([127, -127], 33)[:65]  # signs differ, so these are never added up
    fitted, growth = fitting_weights(codes, shared=False)
    pairs = np.concatenate([fitted, np.zeros((1, 500), np.int8)]).astype(int).reshape(-1, 2, 500)
    assert np.maximum(pairs, 0).sum(axis=1).max() <= LARGEST_PAIR
    assert np.minimum(pairs, 0).sum(axis=1).min() >= -LARGEST_PAIR
    assert growth[0] == growth[2] == 1 and (fitted[:, [0, 2]] == codes[:, [0, 2]]).all()
    assert 1 < growth[1] < 1.02 and (growth >= 1).all() and growth.max() < 2.05
    assert (np.abs(fitted * growth - codes) <= growth / 2 + 1e-9).all()
    again, grown = fitting_weights(fitted, shared=False)
    assert (again == fitted).all() and (grown == 1).all()


# --- engines on the other kind of CPU -------------------------------------------------------------------------------


def test_an_openvino_engine_is_refused_where_its_products_saturate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    xml = built("openvino", tmp_path, "mixed", 64, EXACT).files[0]
    with pytest.raises(BuildError, match=r"model\.xml was built for a CPU that sums INT8 products exactly.*build it"):
        OpenVINORunner(xml, OpenVINOSettings(1, sums=PAIRS))
    xml = built("openvino", tmp_path, "mixed", 64, PAIRS).files[0]
    with caplog.at_level(logging.WARNING):
        OpenVINORunner(xml, OpenVINOSettings(1, sums=EXACT))
    assert "weights are coarser than this one (avx512_vnni, sums are exact) needs" in caplog.text


def test_an_onnxruntime_engine_is_right_on_the_other_cpu_and_says_where_it_comes_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = inputs(64)
    expected = product(codes_of("mixed", 64), scale_of("mixed"), ids)
    for made, opened, says in (
        (EXACT, PAIRS, "its s8 weights are multiplied as u8 here, with the same results"),
        (PAIRS, EXACT, "its u8 weights are right here, too, and about half as fast as s8 ones"),
    ):
        engine = built("onnxruntime", tmp_path, "mixed", 64, made).files[0]
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            run = OnnxRuntimeRunner(engine, OnnxRuntimeSettings(1, sums=opened))
        assert says in caplog.text
        np.testing.assert_array_equal(run({"ids": ids})["y"], expected)


def test_a_reader_that_sets_no_option_is_right_too(tmp_path: Path) -> None:
    """As Triton's backend opens it: the coding is in the file."""
    engine = built("onnxruntime", tmp_path, "highest", 64, int8_sums()).files[0]
    ids = inputs(64)
    session = onnxruntime.InferenceSession(str(engine), providers=["CPUExecutionProvider"])
    expected = product(codes_of("highest", 64), scale_of("highest"), ids)
    np.testing.assert_array_equal(session.run(None, {"ids": ids})[0], expected)


def test_build_json_says_for_which_cpu_and_how(tmp_path: Path) -> None:
    cpu = {"instructions": ["avx2"], "sums": "saturating pairs"}
    assert built("onnxruntime", tmp_path, "mixed", 64, PAIRS).settings["int8_sums"] == {**cpu, "weights": "u8"}
    assert built("onnxruntime", tmp_path, "mixed", 64, EXACT).settings["int8_sums"]["weights"] == "s8"
    said = built("openvino", tmp_path, "mixed", 64, PAIRS).settings["int8_sums"]
    assert said.pop("fitted") == {
        "linears": 1,
        "grown": 1,
        "largest_growth": pytest.approx(1.95, abs=0.1),
        "float_products": [],
    }
    assert said == cpu
    exact = {"instructions": ["avx512_vnni"], "sums": "exact"}
    assert built("openvino", tmp_path, "mixed", 64, EXACT).settings["int8_sums"] == exact
