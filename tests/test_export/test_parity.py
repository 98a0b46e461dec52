"""Parity: one arithmetic in numpy, torch and ONNX Runtime, and every kind of disagreement named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.parity import point_parity, quantized_codes
from export.to_onnx import save_proto
from export.unoptimized import open_unoptimized, run
from qdq.errors import ParityError
from qdq.inject.quantizer import TensorQuantizer, folded
from qdq.inject.scale import scale_of

POINT = "bert.encoder.layer.1.output.dense.input_quantizer"
Array = NDArray[Any]


def fake_quantizers(tiny: Any) -> dict[str, Callable[[Array], Array]]:
    """Point name -> torch's fake-quantizer on numpy arrays, as the pipeline supplies them."""

    def on_arrays(quantizer: TensorQuantizer) -> Callable[[Array], Array]:
        return lambda x: quantizer(torch.from_numpy(x)).numpy()

    return {name: on_arrays(quantizer) for name, quantizer in tiny.quantizers.items()}


def changed(canonical: Path, folder: Path, **initializers: Any) -> Path:
    """A copy of the graph with initializers replaced by a function of their value."""
    model = onnx.load(canonical)
    for tensor in model.graph.initializer:
        if tensor.name in initializers:
            value = np.asarray(initializers[tensor.name](numpy_helper.to_array(tensor)))
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    path = folder / "changed.onnx"
    onnx.save(model, path)
    return path


# One arithmetic


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)
HALVES = st.integers(-400, 400).map(lambda k: k / 2)  # exactly between two codes, times the scale


@pytest.fixture(scope="module")
def runtime_codes() -> Callable[[Array, Array], Array]:
    """ONNX Runtime's QuantizeLinear with the scale as an input."""
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"])],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("codes", TensorProto.INT8, ["n"])],
        [numpy_helper.from_array(np.asarray(np.int8(0)), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = open_unoptimized(model.SerializeToString(), Path())
    return lambda x, scale: run(session, {"x": x, "scale": scale}, ["codes"])[0]


@settings(max_examples=150, deadline=None)
@given(
    x=hnp.arrays(np.float32, st.integers(1, 40), elements=FLOATS),
    halves=st.lists(HALVES, max_size=20),
    amax=st.floats(2.0**-20, 1e4, width=32),
)
@example(x=np.array([1e-45, -1e-45, 3.4e38, -3.4e38, 0.0, -0.0], np.float32), halves=[0.5, 1.5, 2.5, -0.5], amax=1.0)
def test_numpy_torch_and_onnxruntime_give_equal_codes(
    runtime_codes: Any, x: Array, halves: list[float], amax: float
) -> None:
    """Halves, subnormals and values far beyond the range included; equality is exact, not within a step."""
    quantizer = TensorQuantizer("point")
    quantizer.set_amax(torch.tensor(amax))
    scale = scale_of(torch.tensor(amax), 8).numpy()
    x = np.concatenate([x, np.array(halves, np.float32) * scale])
    codes = quantized_codes(x, scale, np.array(0, np.int8))
    np.testing.assert_array_equal(codes.astype(np.float32) * scale, quantizer(torch.from_numpy(x)).numpy())
    np.testing.assert_array_equal(codes, runtime_codes(x, scale))


def test_codes_round_half_to_even_and_saturate() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, 126.5, 127.5, 1e30, -1e30], np.float32)
    codes = quantized_codes(x, np.array(1, np.float32), np.array(0, np.int8))
    assert codes.tolist() == [0, 2, 2, 0, 126, 127, 127, -128]


def test_codes_of_the_unsigned_coding_are_the_signed_ones_plus_128() -> None:
    x = np.linspace(-2, 2, 1001, dtype=np.float32)
    scale = np.array(2.0**-7, np.float32)
    signed = quantized_codes(x, scale, np.array(0, np.int8)).astype(int)
    assert (quantized_codes(x, scale, np.array(128, np.uint8)) == signed + 128).all()


# Points


def test_every_point_agrees_exactly(tiny: Any, canonical: Path) -> None:
    parity = point_parity(canonical, tiny.feeds(3, 10), fake_quantizers(tiny))
    report = parity.as_json()
    assert (report["max_step"], report["min_equal"], len(report["points"])) == (0, 1.0, 20)
    assert report["elements"] == sum(result.elements for result in parity.points)
    assert parity.points[0].point == "bert.encoder.layer.0.attention.self.query.input_quantizer"
    assert parity.points[0].elements == 3 * 10 * 32


@pytest.mark.parametrize("points_per_run", [1, 7, 100])
def test_the_number_of_points_per_run_does_not_matter(tiny: Any, canonical: Path, points_per_run: int) -> None:
    feeds = tiny.feeds(2, 6)
    assert point_parity(canonical, feeds, points_per_run=points_per_run) == point_parity(canonical, feeds)


def test_external_data_works(tiny: Any, canonical: Path, tmp_path: Path) -> None:
    save_proto(onnx.load(canonical), tmp_path / "m.onnx", external_data_bytes=1000)
    feeds = tiny.feeds(2, 6)
    assert point_parity(tmp_path / "m.onnx", feeds) == point_parity(canonical, feeds)


def test_a_scale_that_is_not_the_modules_names_the_point(tiny: Any, canonical: Path, tmp_path: Path) -> None:
    path = changed(canonical, tmp_path, **{f"{POINT}.scale": lambda scale: scale * 2})
    with pytest.raises(ParityError) as caught:
        point_parity(path, tiny.feeds(2, 6), fake_quantizers(tiny))
    # Only this point: the others are compared on the inputs they got, wrong or not.
    assert str(caught.value).startswith("1 point(s) differ on identical inputs")
    assert f"- {POINT}: ONNX Runtime and torch have" in str(caught.value)
    assert point_parity(path, tiny.feeds(2, 6)).as_json()["max_step"] == 0  # numpy alone cannot know the right scale


def test_a_point_the_module_lacks_is_an_error(tiny: Any, canonical: Path) -> None:
    quantizers = {name: quantizer for name, quantizer in fake_quantizers(tiny).items() if name != POINT}
    with pytest.raises(ParityError, match=rf"{POINT}: in the graph but not in the module"):
        point_parity(canonical, tiny.feeds(2, 6), quantizers)


def test_nan_names_a_point_it_reaches(tiny: Any, canonical: Path, tmp_path: Path) -> None:
    path = changed(canonical, tmp_path, **{"bert.embeddings.LayerNorm.bias": lambda bias: bias * np.nan})
    with pytest.raises(ParityError, match=r"bert\.encoder\.layer\.\S+: its input holds NaN"):
        point_parity(path, tiny.feeds(2, 6))


def test_a_missing_input_is_named(tiny: Any, canonical: Path) -> None:
    feeds = tiny.feeds(2, 6)
    del feeds["token_type_ids"]
    with pytest.raises(ParityError, match=r"lacks input\(s\) token_type_ids"):
        point_parity(canonical, feeds)


# Weights


def float_weights(tiny: Any) -> dict[str, Array]:
    names = [name for name in tiny.quantizers if name.endswith("weight_quantizer")]
    with folded(tiny.module.model):
        modules = {name: tiny.module.model.get_submodule(name.rpartition(".")[0]) for name in names}
        return {name: module.weight.detach().numpy().copy() for name, module in modules.items()}


def test_weights_are_round_of_weight_over_scale(tiny: Any, canonical: Path) -> None:
    """Exactly; in front of a MatMul they are stored transposed."""
    graph = onnx.load(canonical).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = float_weights(tiny)
    assert len(weights) == 12
    for point, weight in weights.items():
        scale, zero = stored[f"{point}.scale"], stored[f"{point}.zero_point"]
        codes = quantized_codes(weight, scale[:, None], zero.reshape(-1)[0])
        np.testing.assert_array_equal(stored[f"{point}.codes"], codes.T)


def test_a_file_that_is_no_graph_is_named(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="cannot be read as ONNX"):
        point_parity(tmp_path / "absent.onnx", tiny.feeds(2, 6))
