"""The calibration pass on tiny models: padding and grouping do not matter, bad points are named, switches work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qdq.calibrate.algorithms import Algorithm, algorithm_named
from qdq.calibrate.calibrate import (
    calibrate,
    default_percentile,
    freeze_weights,
    summarise,
)
from qdq.calibrate.calibrators import HistogramCalibrator
from qdq.calibrate.table import CalibrationTable
from qdq.errors import CalibrationError, ConfigError
from qdq.inject import inject, quantizers
from qdq.inject.quantizer import QuantLinear
from qdq.inject.spec import QuantSpec, named_spec
from qdq.loading.model import LoadedModel, load_model
from qdq.text.data import Record
from qdq.text.encode import calibration_batches, encode_batch

Batches = Sequence[Mapping[str, Tensor]]
Checkpoint = Callable[..., Path]

MAX, PERCENTILE = algorithm_named("max"), algorithm_named("percentile", 99.9)
ALL = named_spec("qdqbert")
QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def bert(tiny_checkpoint: Checkpoint) -> LoadedModel:
    """Never injected itself: `injected` copies it."""
    return load_model(str(tiny_checkpoint("bert")))


@pytest.fixture(scope="module")
def records(sentences: tuple[str, ...]) -> list[Record]:
    return [Record(text, sentences[-index] if index % 4 == 0 else None) for index, text in enumerate(sentences[:20])]


def injected(loaded: LoadedModel, spec: QuantSpec = ALL) -> nn.Module:
    module = copy.deepcopy(loaded.module())
    inject(module.model, spec)
    return module


def tensors(feeds: Any) -> Batches:
    return [{name: torch.from_numpy(array) for name, array in feed.items()} for feed in feeds]


def micro_batches(loaded: LoadedModel, records: list[Record], size: int = 8) -> Batches:
    return tensors(calibration_batches(loaded.tokenizer, records, loaded.inputs, 64, size))


def padded(loaded: LoadedModel, records: list[Record], width: int) -> Batches:
    return tensors([encode_batch(loaded.tokenizer, records, loaded.inputs, width)])


def run(loaded: LoadedModel, batches: Batches, settings: Algorithm, spec: QuantSpec = ALL) -> CalibrationTable:
    return calibrate(injected(loaded, spec), batches, spec, settings)


def close(a: CalibrationTable, b: CalibrationTable, relative: float) -> bool:
    assert a.activations.keys() == b.activations.keys()
    return all(a.activations[name] == pytest.approx(b.activations[name], rel=relative) for name in a.activations)


# What counts


@pytest.mark.parametrize("settings", [MAX, PERCENTILE])
def test_padding_does_not_count(bert: LoadedModel, records: list[Record], settings: Algorithm) -> None:
    short = [Record(" ".join(record.text.split()[:12])) for record in records]
    narrow, wide = run(bert, padded(bert, short, 16), settings), run(bert, padded(bert, short, 40), settings)
    assert (narrow.samples, narrow.tokens) == (wide.samples, wide.tokens)
    assert narrow.weights == wide.weights
    # Another width sums in another order (1e-6); a percentile may then fall into the neighbouring FP16 bin (2**-10).
    assert close(narrow, wide, 1e-5 if settings is MAX else 2**-10)


def test_padding_is_not_counted_by_any_point(bert: LoadedModel, records: list[Record]) -> None:
    """Elements per point: exactly the real positions, and pairs of them for the attention probabilities."""
    counts: list[dict[str, int]] = []
    for width in (34, 60):
        module = injected(bert)
        calibrate(module, padded(bert, records, width), ALL, PERCENTILE)
        collected = {name: point.calibrator for name, point in quantizers(module).items()}
        counts.append({n: int(c.counts.sum()) for n, c in collected.items() if isinstance(c, HistogramCalibrator)})
    assert counts[0] == counts[1]
    lengths = padded(bert, records, 60)[0]["attention_mask"].sum(dim=1)
    assert counts[0][f"{QUERY}.input_quantizer"] == int(lengths.sum()) * 32
    assert counts[0]["bert.encoder.layer.1.attention.self.matmul_k_input_quantizer"] == int(lengths.sum()) * 32
    assert counts[0]["bert.encoder.layer.1.attention.self.matmul_a_input_quantizer"] == 2 * int((lengths**2).sum())


def test_what_padding_holds_cannot_matter(bert: LoadedModel, records: list[Record]) -> None:
    (plain,) = padded(bert, records, 40)
    noisy = {**plain, "input_ids": torch.where(plain["attention_mask"].bool(), plain["input_ids"], 77)}
    assert run(bert, [plain], MAX) == run(bert, [noisy], MAX)


@pytest.mark.parametrize("settings", [MAX, PERCENTILE])
def test_two_runs_give_the_same_bits(bert: LoadedModel, records: list[Record], settings: Algorithm) -> None:
    assert run(bert, micro_batches(bert, records), settings) == run(bert, micro_batches(bert, records), settings)


@pytest.mark.parametrize("settings", [MAX, PERCENTILE])
def test_order_of_the_batches_changes_no_bit(bert: LoadedModel, records: list[Record], settings: Algorithm) -> None:
    batches = list(micro_batches(bert, records))
    assert run(bert, batches, settings) == run(bert, batches[::-1], settings)


@pytest.mark.parametrize("size", [1, 3, 20])
def test_grouping_changes_only_the_rounding_of_matrix_products(
    bert: LoadedModel, records: list[Record], size: int
) -> None:
    eight, other = (run(bert, micro_batches(bert, records, each), PERCENTILE) for each in (8, size))
    assert (eight.samples, eight.tokens) == (other.samples, other.tokens)
    assert eight.samples == len(records)
    assert close(eight, other, 2**-10)


def test_multiple_choice_masks(tiny_checkpoint: Checkpoint, records: list[Record]) -> None:
    loaded = load_model(str(tiny_checkpoint("bert", "multiple-choice")))
    tables = []
    for width in (44, 60):
        feed = encode_batch(loaded.tokenizer, records[:6], loaded.inputs, width, choices=3)
        assert feed["input_ids"].shape == (6, 3, width)
        tables.append(run(loaded, tensors([feed]), MAX))
    assert tables[0].samples == 6
    assert tables[0].tokens == int(feed["attention_mask"].sum()) == tables[1].tokens
    assert close(tables[0], tables[1], 1e-5)


def test_max_amax_is_what_a_hook_sees(bert: LoadedModel, records: list[Record]) -> None:
    batches = padded(bert, records, 60)
    seen: list[Tensor] = []
    plain = copy.deepcopy(bert.module())
    dense = plain.get_submodule("model.bert.encoder.layer.1.output.dense")
    dense.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        plain(**batches[0])
    expected = float(seen[0][batches[0]["attention_mask"].bool()].abs().max())
    table = run(bert, batches, MAX)
    assert table.activations["bert.encoder.layer.1.output.dense.input_quantizer"] == pytest.approx(expected, rel=1e-6)


# What is left behind


def test_every_point_is_frozen_and_enabled(bert: LoadedModel, records: list[Record]) -> None:
    module = injected(bert)
    table = calibrate(module, micro_batches(bert, records), ALL, PERCENTILE)
    points = quantizers(module)
    assert len(points) == 40
    assert {*table.activations, *table.weights} == set(points)
    for name, point in points.items():
        assert point.amax is not None
        assert not point._if_calib
        assert point.token_mask is None
        assert (name in table.weights) == (point.layout == "weight")
    (batch,) = padded(bert, records, 60)
    with torch.no_grad():
        quantized, plain = module(**batch)[0], bert.module()(**batch)[0]
    gap = (quantized - plain).abs().max()
    assert 0 < gap < 0.5 * plain.std()


def test_an_interrupted_pass_stops_collecting(bert: LoadedModel, records: list[Record]) -> None:
    module = injected(bert)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(module, micro_batches(bert, records), ALL, MAX, interrupt)
    assert not any(point._if_calib or point.token_mask is not None for point in quantizers(module).values())


def test_progress(bert: LoadedModel, records: list[Record]) -> None:
    calls: list[tuple[int, int]] = []
    calibrate(injected(bert), micro_batches(bert, records), ALL, MAX, lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_the_table_as_json(bert: LoadedModel, records: list[Record]) -> None:
    content = run(bert, micro_batches(bert, records), PERCENTILE).as_json()
    assert (content["algorithm"], content["percentile"], content["samples"]) == ("percentile", 99.9, 20)
    assert content["activations"][f"{QUERY}.input_quantizer"]["amax"] > 0
    row = content["weights"][f"{QUERY}.weight_quantizer"]
    assert row["channels"] == 32
    assert 0 < row["amax_min"] < row["amax_max"]
    assert row["zero_channels"] == 0
    assert run(bert, micro_batches(bert, records), MAX).as_json()["percentile"] is None


def test_summarise_needs_calibration(bert: LoadedModel) -> None:
    with pytest.raises(CalibrationError, match=r"quantizer: has no amax; calibrate before summarising"):
        summarise(injected(bert), "max", None, 0, 0)


# Weights


def test_an_all_zero_channel_gets_the_floor_scale_and_is_counted(bert: LoadedModel, records: list[Record]) -> None:
    module = injected(bert)
    linear = module.get_submodule("model.bert.encoder.layer.0.output.dense")
    assert isinstance(linear, QuantLinear)
    with torch.no_grad():
        linear.weight[[3, 5]] = 0
    table = calibrate(module, micro_batches(bert, records), ALL, MAX)
    name = "bert.encoder.layer.0.output.dense.weight_quantizer"
    assert table.zero_channels == {name: 2}
    assert table.as_json()["weights"][name]["zero_channels"] == 2
    assert [table.weights[name][3], table.weights[name][5]] == [0, 0]
    weight = quantizers(module)[name](torch.full((32, 64), 2.0**-14 * 3))  # floor scale 2**-14: three steps
    assert torch.equal(weight[3], torch.full((64,), 2.0**-14 * 3))
    with torch.no_grad():
        assert torch.isfinite(module(**padded(bert, records, 60)[0])[0]).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_weight_names_its_point(bert: LoadedModel, records: list[Record], value: float) -> None:
    module = injected(bert)
    with torch.no_grad():
        module.get_parameter("model.bert.encoder.layer.1.intermediate.dense.weight")[4, 4] = value
    message = r"bert\.encoder\.layer\.1\.intermediate\.dense\.weight_quantizer: the weight holds NaN or infinity; copy"
    with pytest.raises(CalibrationError, match=message):
        calibrate(module, micro_batches(bert, records), ALL, MAX)


def test_recalibrate_weights_overrides_the_amax_a_checkpoint_brought(bert: LoadedModel) -> None:
    module = injected(bert)
    freeze_weights(module)
    point = quantizers(module)[f"{QUERY}.weight_quantizer"]
    measured = point.amax.clone()
    point.set_amax(measured * 2)
    freeze_weights(module, recalibrate=False)
    assert torch.equal(point.amax, measured * 2)
    freeze_weights(module, recalibrate=True)
    assert torch.equal(point.amax, measured)


def test_query_weight_amax_is_of_the_scaled_weight(bert: LoadedModel, records: list[Record]) -> None:
    table = run(bert, micro_batches(bert, records), MAX)
    weight = bert.model.get_parameter(f"{QUERY}.weight").detach()
    assert np.allclose(table.weights[f"{QUERY}.weight_quantizer"], weight.abs().amax(1) / np.sqrt(16), rtol=1e-6)


# Points without usable data


def test_a_point_that_saw_nothing_is_named_and_the_rest_counted(bert: LoadedModel) -> None:
    with pytest.raises(
        CalibrationError, match=r"layer\.0\.attention\.self\.query\.input_quantizer: saw no data.*27 more"
    ):
        run(bert, [], MAX)


def test_nan_from_a_layer_norm_is_named_where_it_first_shows(bert: LoadedModel, records: list[Record]) -> None:
    module = injected(bert)
    with torch.no_grad():
        module.get_parameter("model.bert.encoder.layer.0.attention.output.LayerNorm.weight")[0] = float("nan")
    with pytest.raises(CalibrationError, match=r"layer\.0\.intermediate\.dense\.input_quantizer: saw NaN or infinity"):
        calibrate(module, micro_batches(bert, records), ALL, MAX)


def test_only_zeros_is_named(bert: LoadedModel, records: list[Record]) -> None:
    module = injected(bert)
    with torch.no_grad():
        for part in ("weight", "bias"):
            module.get_parameter(f"model.bert.encoder.layer.1.attention.self.value.{part}").zero_()
    with pytest.raises(CalibrationError, match=r"layer\.1\.attention\.self\.matmul_v_input_quantizer: saw only zeros"):
        calibrate(module, micro_batches(bert, records), ALL, PERCENTILE)


# The spec's switches


def test_fuse_qkv_shares_the_largest_amax(bert: LoadedModel, records: list[Record]) -> None:
    plain_spec = named_spec("qdqbert", per_channel_weights=False)
    plain = run(bert, micro_batches(bert, records), MAX, plain_spec)
    fused = run(bert, micro_batches(bert, records), MAX, named_spec("trt"))
    for layer in (0, 1):
        attention = f"bert.encoder.layer.{layer}.attention.self"
        operands = [f"{attention}.matmul_{operand}_input_quantizer" for operand in "qkv"]
        weights = [f"{attention}.{linear}.weight_quantizer" for linear in ("query", "key", "value")]
        assert {fused.activations[name] for name in operands} == {max(plain.activations[name] for name in operands)}
        assert {fused.weights[name] for name in weights} == {max(plain.weights[name] for name in weights)}
        inner = f"{attention}.matmul_a_input_quantizer"
        assert fused.activations[inner] == plain.activations[inner]


def test_fuse_qkv_leaves_per_channel_weights_alone(bert: LoadedModel, records: list[Record]) -> None:
    fused = run(bert, micro_batches(bert, records), MAX, named_spec("qdqbert", fuse_qkv=True))
    assert fused.weights == run(bert, micro_batches(bert, records), MAX).weights


def test_fuse_qkv_of_a_placement_without_v(bert: LoadedModel, records: list[Record]) -> None:
    table = run(bert, micro_batches(bert, records), MAX, named_spec("linear+qk", fuse_qkv=True))
    attention = "bert.encoder.layer.0.attention.self"
    q, k = (table.activations[f"{attention}.matmul_{operand}_input_quantizer"] for operand in "qk")
    assert q == k


@pytest.mark.parametrize(
    ("model_type", "linears"),
    [
        ("bert", ["bert.encoder.layer.{}.output.dense"]),
        ("electra", ["electra.encoder.layer.{}.output.dense"]),
        ("distilbert", ["distilbert.transformer.layer.{}.ffn.lin2"]),
        ("albert", ["albert.encoder.albert_layer_groups.0.albert_layers.0.ffn_output"]),
        ("mpnet", ["mpnet.encoder.layer.{}.output.dense"]),
    ],
)
def test_clip_gelu_bounds_the_input_behind_gelu_and_nothing_else(
    tiny_checkpoint: Checkpoint, records: list[Record], model_type: str, linears: list[str]
) -> None:
    loaded = load_model(str(tiny_checkpoint(model_type)))
    batches = micro_batches(loaded, records)
    plain = run(loaded, batches, MAX)
    bound = 0.5 * min(plain.activations.values())
    clipped = run(loaded, batches, MAX, named_spec("qdqbert", clip_gelu=bound))
    behind = {f"{linear.format(layer)}.input_quantizer" for linear in linears for layer in (0, 1)}
    changed = {name for name in plain.activations if plain.activations[name] != clipped.activations[name]}
    assert changed == behind
    assert {clipped.activations[name] for name in behind} == {float(np.float32(bound))}


def test_clip_gelu_never_raises_an_amax(bert: LoadedModel, records: list[Record]) -> None:
    spec = named_spec("qdqbert", clip_gelu=1e6)
    assert run(bert, micro_batches(bert, records), MAX, spec) == run(bert, micro_batches(bert, records), MAX)


def test_default_percentile_clips_residuals_only() -> None:
    assert default_percentile(named_spec("qdqbert")) == 99.99
    assert default_percentile(named_spec("linear+qk")) == 99.999


def test_settings_are_validated() -> None:
    with pytest.raises(ConfigError, match=r"calibrator: unknown value 'msee'; did you mean 'mse'"):
        algorithm_named("msee")
    with pytest.raises(ConfigError, match=r"percentile: 0 is outside \(0, 100\]"):
        algorithm_named("percentile", 0)
