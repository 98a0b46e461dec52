"""Fusion map with points taken away: what each placed point is worth to the engine, without another export."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from export.lint import broken_fusions, fusion_map, layers_without
from export.passes import LowerOptions, lower
from qdq.errors import ConfigError

L0 = "bert.encoder.layer.0."
SOFTMAX = L0 + "attention.self.Softmax"
# Every point of a layer -> the layers that break without it, below L0. Twelve pairs serve twenty points.
BROKEN: dict[str, set[str]] = {
    "attention.self.matmul_q_input_quantizer": {"attention.self.Softmax"},
    "attention.self.matmul_k_input_quantizer": {"attention.self.Softmax"},
    "attention.self.matmul_a_input_quantizer": {"attention.self.Softmax"},
    "attention.self.matmul_v_input_quantizer": {"attention.self.Softmax"},
    "attention.self.query.input_quantizer": {"attention.self.query.MatMul"},
    "attention.self.query.weight_quantizer": {"attention.self.query.MatMul"},
    "attention.self.key.input_quantizer": {"attention.self.key.MatMul"},
    "attention.self.key.weight_quantizer": {"attention.self.key.MatMul"},
    "attention.self.value.input_quantizer": {"attention.self.value.MatMul"},
    "attention.self.value.weight_quantizer": {"attention.self.value.MatMul"},
    "attention.output.add_local_input_quantizer": set(),  # the add's kernel rounds its branch in registers
    "attention.output.add_residual_input_quantizer": {"attention.output.Add"},
    "attention.output.dense.input_quantizer": {"attention.output.dense.MatMul", "attention.self.Softmax"},
    "attention.output.dense.weight_quantizer": {"attention.output.dense.MatMul"},
    "intermediate.dense.input_quantizer": {"intermediate.dense.MatMul", "output.Add"},  # whose skip shares the codes
    "intermediate.dense.weight_quantizer": {"intermediate.dense.MatMul"},
    "output.add_local_input_quantizer": set(),
    "output.add_residual_input_quantizer": {"output.Add"},
    "output.dense.input_quantizer": {"output.dense.MatMul"},
    "output.dense.weight_quantizer": {"output.dense.MatMul"},
}
TOGETHER = "attention.self.query_and_key_and_value.MatMul"  # once lowered
PROJECTIONS = {f"attention.self.{name}.MatMul" for name in ("query", "key", "value")}


@pytest.mark.parametrize("lowered", [False, True])
def test_every_point_of_a_layer_breaks_exactly_what_needs_it(
    lowered: bool, model: onnx.ModelProto, canonical: Path, tiny_points: tuple[str, ...], tmp_path: Path
) -> None:
    if lowered:
        lower(canonical, "tensorrt", tmp_path, options=LowerOptions("fp16", None))
        model = onnx.load(tmp_path / "model.onnx")
    own = dict.fromkeys(PROJECTIONS, TOGETHER) if lowered else {}
    expected = {point: {own.get(name, name) for name in names} for point, names in BROKEN.items()}
    if lowered:  # the skip's codes are the product's, which is taken away whole
        for name in ("query", "key", "value"):
            expected[f"attention.self.{name}.input_quantizer"] |= {"attention.output.Add"}
    before = model.SerializeToString()
    broken = broken_fusions(model, [point for point in tiny_points if point.startswith(L0)])
    assert {
        point.removeprefix(L0): {layer.name.removeprefix(L0) for layer in found} for point, found in broken.items()
    } == expected
    assert all(layer.reason for found in broken.values() for layer in found)
    assert model.SerializeToString() == before


def test_points_taken_away_together(model: onnx.ModelProto, tiny_points: tuple[str, ...]) -> None:
    whole = fusion_map(model)
    assert layers_without(model, ()) == whole
    operands = [f"{L0}attention.self.matmul_{role}_input_quantizer" for role in "qkav"]
    (attention,) = (layer for layer in layers_without(model, operands) if layer.name == SOFTMAX)
    assert (attention.kind, attention.precision) == ("unfused", "fp32")  # all in float, but FP32 does not fuse
    bare = layers_without(model, tiny_points)
    assert not [layer for layer in bare if layer.precision == "int8"]
    assert [layer.name for layer in bare] == [layer.name for layer in whole]


def test_external_weights_are_not_needed(model: onnx.ModelProto, tiny_points: tuple[str, ...], tmp_path: Path) -> None:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving moves the weights out of what is saved
    onnx.save(copy, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=512, location="m.data")
    without_data = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert broken_fusions(without_data, tiny_points[:3]) == broken_fusions(model, tiny_points[:3])


@pytest.mark.parametrize("point", ["bert.encoder.layer.9.output.dense.input_quantizer", "nonsense", ""])
def test_a_point_that_is_not_there_is_named(point: str, model: onnx.ModelProto) -> None:
    with pytest.raises(ConfigError, match=rf"{point}: quantizes nothing in this graph"):
        broken_fusions(model, [point])
