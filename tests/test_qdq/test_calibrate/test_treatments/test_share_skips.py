"""Shared skips: a residual add reads what the linears read, as one QuantizeLinear of the lowered graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.passes import lower
from export.to_onnx import export_onnx
from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrate import summarise
from qdq.calibrate.checkpoint import load_checkpoint, write_checkpoint
from qdq.calibrate.rebatch import MicroBatches
from qdq.calibrate.treatments.order import finish, prepare
from qdq.calibrate.treatments.scale_residuals import drop_unused_scales
from qdq.calibrate.treatments.settings import PLAIN, Treatments
from qdq.calibrate.treatments.share_skips import readers, tie_skips
from qdq.inject import decided, inject, quantizers, remove
from qdq.inject.blocks import Residual
from qdq.inject.families import FAMILIES
from qdq.inject.quantizer import TensorQuantizer, folded
from qdq.inject.spec import QuantSpec, named_spec
from qdq.loading.model import LoadedModel
from qdq.pipeline.stages.export import export_example

Load = Callable[..., LoadedModel]
Encode = Callable[..., dict[str, torch.Tensor]]

FUSED = named_spec("fused")
every_family = pytest.mark.parametrize("model_type", FAMILIES)


def calibrated(
    loaded: LoadedModel, encode: Encode, treatments: Treatments, algorithm: str = "max", spec: QuantSpec = FUSED
) -> None:
    """Inject and calibrate in place. One channel of every LayerNorm is an outlier."""
    for name, parameter in loaded.model.named_parameters():
        if "layer_norm.weight" in name.lower() or "layernorm.weight" in name.lower():
            parameter.data[3] = 20.0
    inject(loaded.model, spec)
    chosen = algorithm_named(algorithm)
    prepared = prepare(loaded.module(), MicroBatches.of([encode(loaded)], 4), spec, [chosen], treatments)
    finish(prepared, chosen)


def adds(loaded: LoadedModel) -> dict[str, Residual]:
    return {path: part for path, part in loaded.model.named_modules() if isinstance(part, Residual)}


@every_family
def test_the_skip_is_the_tensor_that_its_readers_read(model_type: str, load_tiny: Load, encode: Encode) -> None:
    """The table of families against what a forward passes; each tensor is alive, so its identity is its own."""
    loaded = load_tiny(model_type)
    inject(loaded.model, FUSED)
    seen: dict[str, list[torch.Tensor]] = {}
    for path, add in adds(loaded).items():
        add.observer = lambda _, residual, path=path: seen.setdefault(path, []).append(residual)
        for linear in readers(loaded.model, path):
            linear.register_forward_hook(
                lambda module, inputs, _, path=path: seen.setdefault(f"{path} {id(module)}", []).append(inputs[0])
            )
    with torch.no_grad():
        loaded.module()(**encode(loaded))
    for path in adds(loaded):
        found = readers(loaded.model, path)
        assert len(found) in (1, 3)
        for linear in found:
            of_linear = seen[f"{path} {id(linear)}"]
            assert len(of_linear) == len(seen[path])
            assert all(one is other for one, other in zip(of_linear, seen[path], strict=True))


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "albert", "mpnet"])  # one of each wiring
def test_a_lowered_graph_has_no_quantizer_for_a_shared_skip(
    model_type: str, load_tiny: Load, encode: Encode, tmp_path: Path
) -> None:
    loaded = load_tiny(model_type)
    calibrated(loaded, encode, Treatments())
    assert any(part._skip_factor is not None for part in adds(loaded).values())
    assert_shared(loaded)
    with folded(loaded.model):
        export_onnx(loaded.module(), export_example(loaded), loaded.outputs, tmp_path / "model.onnx")
    lower(tmp_path / "model.onnx", "tensorrt", tmp_path / "lowered")
    graph = onnx.load(tmp_path / "lowered" / "model.onnx").graph
    quantized = [node.name for node in graph.node if node.op_type == "QuantizeLinear"]
    skips = [name for name in quantizers(loaded.model) if "add_residual" in name]
    assert skips and not [name for name in quantized if "add_residual" in name]
    # Each layer: the input of q, k and v, of three linears, and four operands of attention. Where only one row of the
    # last layer is needed, its query has an input of its own.
    depth = len([node for node in graph.node if node.op_type == "Softmax"])
    assert len(quantized) in (8 * depth, 8 * depth + 1)


@pytest.mark.parametrize(
    ("algorithm", "treatments"), [("percentile:99.9", PLAIN), ("mse", Treatments(clip_search=False))]
)
def test_a_named_calibrator_gives_both_readers_one_range(
    algorithm: str, treatments: Treatments, load_tiny: Load, encode: Encode
) -> None:
    loaded = load_tiny()
    calibrated(loaded, encode, treatments, algorithm)
    assert_shared(loaded)


def assert_shared(loaded: LoadedModel) -> None:
    for path, add in adds(loaded).items():
        point = add.add_residual_input_quantizer
        assert isinstance(point, TensorQuantizer)
        for linear in readers(loaded.model, path):
            assert linear._input_quantizer is not None and torch.equal(linear._input_quantizer.amax, point.amax)
            factors = linear._smoothing, add._skip_factor
            assert factors == (None, None) or torch.equal(*factors)  # type: ignore[arg-type]  # both are there


def test_the_floating_point_function_stays_and_the_checkpoint_keeps_the_factor(
    load_tiny: Load, encode: Encode, tmp_path: Path
) -> None:
    plain, loaded = load_tiny(), load_tiny()
    exact = Treatments(round_type="round", bias_correction=False)
    calibrated(loaded, encode, exact)
    calibrated(plain, encode, PLAIN, spec=named_spec("linear"))
    batch = encode(loaded)
    module = copy.deepcopy(loaded.module())
    for each in (module, plain.module()):
        for point in quantizers(each).values():
            point.disable_quant()
    with torch.no_grad():
        torch.testing.assert_close(module(**batch)[0], plain.module()(**batch)[0], rtol=0, atol=2e-5)
        quantized = loaded.module()(**batch)[0]
    table = summarise(loaded.model, "max", None, 12, 100)
    write_checkpoint(loaded, FUSED, table, tmp_path / "checkpoint")
    again, spec, placement = load_checkpoint(tmp_path / "checkpoint")
    assert spec == FUSED and len(placement.placed) == len(quantizers(loaded.model))
    assert_shared(again)
    with torch.no_grad():
        assert torch.equal(again.module()(**batch)[0], quantized)


def test_smoothing_is_chosen_for_both_readers(load_tiny: Load, encode: Encode) -> None:
    """The skip alone would be ruined by one outlier channel: 255 codes for it, a handful for all others."""
    shared, own = load_tiny(), load_tiny()
    calibrated(shared, encode, Treatments())
    calibrated(own, encode, Treatments(smoothing=False))
    errors = []
    for loaded in (shared, own):
        noise: list[float] = []
        for add in adds(loaded).values():
            add.observer = lambda _, residual, add=add, noise=noise: noise.append(error_of_bulk(add, residual))
        with torch.no_grad():
            loaded.module()(**encode(loaded))
        errors.append(np.mean(noise))
    assert errors[0] < 0.05 * errors[1]


def error_of_bulk(add: Residual, residual: torch.Tensor) -> float:
    error = (add._skip(residual) - residual).square()
    return float(error[..., [index for index in range(error.shape[-1]) if index != 3]].mean())


def test_a_skip_without_a_quantized_reader_stays_float_with_the_reason(load_tiny: Load) -> None:
    loaded = load_tiny()
    spec = named_spec("fused", disable_layers=r"0\.(attention\.self\.(query|key|value)|intermediate\.dense)\.weight")
    inject(loaded.model, spec)
    placement = {point.name: point for point in decided(loaded.model, spec).points}
    for path, add in adds(loaded).items():
        point = placement[f"{path}.add_residual_input_quantizer"]
        assert point.placed == (".1." in path) == (add.add_residual_input_quantizer is not None)
        assert point.placed or "no quantized linear reads the same tensor" in point.reason


def test_a_skip_that_is_left_out_later_loses_its_factor(load_tiny: Load, encode: Encode) -> None:
    loaded = load_tiny()
    calibrated(loaded, encode, Treatments())
    first, *others = (path for path, add in adds(loaded).items() if add._skip_factor is not None)
    remove(loaded.model, [f"{first}.add_residual_input_quantizer"])
    with torch.no_grad():
        before = loaded.module()(**encode(loaded))[0]
        assert drop_unused_scales(loaded.model) == [first]
        torch.testing.assert_close(loaded.module()(**encode(loaded))[0], before, rtol=0, atol=0.05)
    assert adds(loaded)[first]._skip_factor is None
    assert others and all(adds(loaded)[path]._skip_factor is not None for path in others)


def test_one_quantized_reader_is_enough(load_tiny: Load, encode: Encode) -> None:
    loaded = load_tiny()
    calibrated(loaded, encode, Treatments(), spec=named_spec("fused", disable_layers=r"self\.(query|key)\."))
    assert len([name for name in quantizers(loaded.model) if "add_residual" in name]) == 4
    assert_shared(loaded)


def test_ranges_a_checkpoint_brought_are_tied(load_tiny: Load, encode: Encode) -> None:
    loaded = load_tiny()
    calibrated(loaded, encode, PLAIN)
    for name, point in quantizers(loaded.model).items():
        if "add_residual" in name:
            point.set_amax(torch.tensor(123.0))
    tie_skips(loaded.model)
    assert_shared(loaded)
