"""Treatments of post-training quantization: exact where they claim it, better where they are meant to be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.checkpoint import load_checkpoint, write_checkpoint
from qdq.calibrate.rebatch import MicroBatches
from qdq.calibrate.treatments.arithmetic import fake_quantize, normalized
from qdq.calibrate.treatments.attentions import attentions
from qdq.calibrate.treatments.clip import choose_clips
from qdq.calibrate.treatments.equalize import power_of_two, query_factor
from qdq.calibrate.treatments.observe import Observed, Seen, observe
from qdq.calibrate.treatments.order import drop_rounding, finish, prepare, treatment_tensors
from qdq.calibrate.treatments.rounding import fold_rounding, weight_and_scale
from qdq.calibrate.treatments.scale_residuals import drop_unused_scales, scale_residuals
from qdq.calibrate.treatments.settings import PLAIN, Treatments
from qdq.calibrate.treatments.smooth import choose_smoothing, smoothing_factor
from qdq.inject import inject, quantizers, remove
from qdq.inject.blocks import Residual, ResidualOutput
from qdq.inject.families import FAMILIES
from qdq.inject.quantizer import QuantLinear, TensorQuantizer, folded, weight_amax
from qdq.inject.spec import QuantSpec, named_spec
from qdq.loading.model import LoadedModel, load_model
from qdq.text.data import Record
from qdq.text.encode import calibration_batches

Checkpoint = Callable[..., Path]
Batch = dict[str, Tensor]

ALL, MSE, MAX = named_spec("qdqbert"), algorithm_named("mse"), algorithm_named("max")
EXACT = replace(
    PLAIN, value_centering=True, equalization=True, smoothing=True, residual_scaling=True
)  # keep the float function


@pytest.fixture(scope="module")
def bert(tiny_checkpoint: Checkpoint) -> LoadedModel:
    """With outlier channels as real encoders have them: a LayerNorm gain of 40 on one channel. Never injected."""
    loaded = load_model(str(tiny_checkpoint("bert")))
    for name, parameter in loaded.model.named_parameters():
        if name.endswith("LayerNorm.weight") and "encoder" in name:
            parameter.data[3] = 40.0
    return loaded


@pytest.fixture(scope="module")
def batches(bert: LoadedModel, sentences: tuple[str, ...]) -> list[Batch]:
    feeds = calibration_batches(bert.tokenizer, [Record(text) for text in sentences[:24]], bert.inputs, 64, 8)
    return [{name: torch.from_numpy(array) for name, array in feed.items()} for feed in feeds]


def injected(loaded: LoadedModel, spec: QuantSpec = ALL) -> nn.Module:
    module = copy.deepcopy(loaded.module())
    inject(module.model, spec)
    return module


def outputs(module: nn.Module, batches: list[Batch], quantized: bool) -> Tensor:
    for point in quantizers(module).values():
        point.enable_quant() if quantized else point.disable_quant()
    with torch.no_grad():
        return torch.cat([module(**batch)[0] for batch in batches])


def treated(
    loaded: LoadedModel, batches: list[Batch], treatments: Treatments, spec: QuantSpec = ALL, algorithm: str = "mse"
) -> nn.Module:
    module = injected(loaded, spec)
    chosen = algorithm_named(algorithm)
    finish(prepare(module, MicroBatches.of(batches, 8), spec, [chosen], treatments), chosen)
    return module


def linears(module: nn.Module) -> dict[str, QuantLinear]:
    return {name: part for name, part in module.named_modules() if isinstance(part, QuantLinear)}


# Exactness


def test_residual_scaling_changes_no_bit_of_the_floating_point_function(
    bert: LoadedModel, batches: list[Batch]
) -> None:
    """Powers of two: exact, whatever was found."""
    scaled = treated(bert, batches, replace(PLAIN, residual_scaling=True))
    adds = [part for part in scaled.modules() if isinstance(part, Residual) and part._channel_scale is not None]
    assert adds and all(bool((add._channel_scale.log2() % 1 == 0).all()) for add in adds)
    assert torch.equal(outputs(injected(bert), batches, False), outputs(scaled, batches, False))


def test_a_scale_whose_add_quantizes_nothing_any_more_is_dropped_exactly(
    bert: LoadedModel, batches: list[Batch]
) -> None:
    """`auto` may leave both operands in floating point; the two operations are then worth nothing."""
    scaled = treated(bert, batches, Treatments())
    adds = {name: part for name, part in scaled.named_modules() if isinstance(part, Residual)}
    first, second, *_ = (name for name, add in adds.items() if add._channel_scale is not None)
    gone = [f"{first}.add_local", f"{first}.add_residual", f"{second}.add_local"]
    remove(scaled.model, [f"{point.removeprefix('model.')}_input_quantizer" for point in gone])
    before = outputs(scaled, batches, True)
    assert drop_unused_scales(scaled) == [first]  # the second still quantizes one operand
    assert adds[first]._channel_scale is None and drop_unused_scales(scaled) == []
    assert torch.equal(outputs(scaled, batches, True), before)


@torch.no_grad()
def test_residual_scaling_takes_most_of_the_damage_of_outlier_channels() -> None:
    """Three channels at 300 beside a bulk near 1, as in front of BERT's LayerNorms; the block itself is run."""
    generator = torch.Generator().manual_seed(0)
    hidden, skip = torch.randn(2, 256, 16, generator=generator), torch.randn(2, 256, 32, generator=generator)
    skip[..., :3] *= 100.0
    errors = []
    for scaled in (False, True):
        torch.manual_seed(1)
        source = nn.ModuleDict({"dense": nn.Linear(16, 32), "dropout": nn.Identity(), "LayerNorm": nn.LayerNorm(32)})
        block = ResidualOutput(source)
        exact = block(hidden, skip)
        block.dense = QuantLinear(source["dense"])  # type: ignore[arg-type]
        rows = {"local": block.dense(hidden).flatten(0, 1).detach(), "residual": skip.flatten(0, 1)}
        seen = tuple(Seen(part.amin(0), part.amax(0), [part]) for part in rows.values())
        for operand in rows:
            setattr(block, f"add_{operand}_input_quantizer", TensorQuantizer(operand))
        observed = Observed([], {}, {"layer": (seen[0], seen[1])})
        module = nn.ModuleDict({"layer": block})
        decisions = scale_residuals(module, observed) if scaled else []
        assert [row["reason"] for row in decisions] == ["applied"] * scaled
        maxima = {operand: float(part.largest.amax()) for operand, part in zip(rows, seen, strict=True)}
        choose_clips(module, observed, maxima)
        errors.append(float((block(hidden, skip) - exact).square().mean()))
    assert errors[1] < 0.2 * errors[0]


def test_equalization_changes_no_bit_of_the_floating_point_function(bert: LoadedModel, batches: list[Batch]) -> None:
    plain = injected(bert)
    equalized = treated(bert, batches, replace(PLAIN, equalization=True))
    changed = [linear for linear in linears(equalized).values() if linear._row_scale is not None]
    assert any(bool((linear._row_scale != 1).any()) for linear in changed)
    assert torch.equal(outputs(plain, batches, False), outputs(equalized, batches, False))


def test_value_centering_saves_what_probabilities_lose_by_rounding(bert: LoadedModel, batches: list[Batch]) -> None:
    """Values with a large mean: mass that rounds away takes it along, unless it is added behind attention."""
    biased = copy.deepcopy(bert)
    for name, parameter in biased.model.named_parameters():
        if name.endswith("value.bias"):
            parameter.data += 4.0
    errors = []
    for centered in (False, True):
        module = injected(biased)
        plain = outputs(module, batches, False)
        chosen = algorithm_named("max")
        finish(
            prepare(module, MicroBatches.of(batches, 8), ALL, [chosen], replace(PLAIN, value_centering=centered)),
            chosen,
        )
        offsets = [linear._bias_offset for linear in linears(module).values() if linear._bias_offset is not None]
        assert len(offsets) == centered * 2 * biased.model.config.num_hidden_layers
        assert torch.allclose(outputs(module, batches, False), plain, atol=1e-5)
        for name, point in quantizers(module).items():
            point.enable_quant() if name.endswith("matmul_a_input_quantizer") else point.disable_quant()
        with torch.no_grad():
            found = torch.cat([module(**batch)[0] for batch in batches])
        errors.append(float((found - plain).square().mean()))
    assert errors[1] < 0.2 * errors[0]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_treatments_keep_the_function_of_every_family(
    model_type: str, tiny_checkpoint: Checkpoint, sentences: tuple[str, ...]
) -> None:
    loaded = load_model(str(tiny_checkpoint(model_type)))
    feeds = calibration_batches(loaded.tokenizer, [Record(text) for text in sentences[:16]], loaded.inputs, 64, 8)
    batches = [{name: torch.from_numpy(array) for name, array in feed.items()} for feed in feeds]
    module = injected(loaded)
    before = outputs(module, batches, False)
    finish(prepare(module, MicroBatches.of(batches, 8), ALL, [MSE], Treatments()), MSE)
    count = sum(1 for _ in attentions(module))
    assert count in (1, 2)  # ALBERT shares its layer
    assert sum(linear._bias_offset is not None for linear in linears(module).values()) == 2 * count
    assert all(linear._codes is not None for linear in linears(module).values() if linear._weight_quantizer)
    torch.testing.assert_close(outputs(module, batches, False), before, rtol=1e-4, atol=1e-5)


def test_smoothing_keeps_the_function_up_to_float_rounding(bert: LoadedModel, batches: list[Batch]) -> None:
    smoothed = treated(bert, batches, EXACT)
    assert any(linear._smoothing is not None for linear in linears(smoothed).values())
    expected, actual = outputs(injected(bert), batches, False), outputs(smoothed, batches, False)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_nothing_stands_between_an_attention_and_its_output_quantizer(bert: LoadedModel, batches: list[Batch]) -> None:
    """A factor there would keep TensorRT from fusing the attention in INT8."""
    smoothed = linears(treated(bert, batches, EXACT))
    readers = [linear for name, linear in smoothed.items() if name.endswith("attention.output.dense")]
    assert readers and all(linear._smoothing is None for linear in readers)


def test_linears_that_share_an_input_share_its_smoothing(bert: LoadedModel, batches: list[Batch]) -> None:
    """One multiplication and one quantizer in the graph, not three."""
    module = treated(bert, batches, EXACT)
    for _, projections in attentions(module):
        factors = [linear._smoothing for linear in projections]
        assert all(factor is None for factor in factors) or all(torch.equal(f, factors[0]) for f in factors)
        assert len({float(linear._input_quantizer.amax) for linear in projections}) == 1


def test_the_parameters_stay_the_checkpoints_own(bert: LoadedModel, batches: list[Batch]) -> None:
    module = treated(bert, batches, Treatments())
    originals = dict(bert.model.named_parameters())
    assert all(torch.equal(value, originals[name]) for name, value in module.model.named_parameters())


# Effect


def test_smoothing_lowers_the_output_error_of_inputs_with_outliers(bert: LoadedModel, batches: list[Batch]) -> None:
    """And is declined where it does not pay."""
    observed = observe(injected(bert), MicroBatches.of(batches, 8))
    decisions = [choose_smoothing(group)[0] for group in observed.groups]
    applied = [decision for decision in decisions if decision["alpha"] is not None]
    assert applied
    assert all(decision["after"] < 0.7 * decision["before"] for decision in applied)
    assert min(decision["after"] / decision["before"] for decision in applied) < 0.5
    declined, _ = choose_smoothing(observed.groups[0], worth_it=0.0)
    assert declined["alpha"] is None
    assert declined["reason"].startswith("declined: the error would be")


def test_residual_ranges_are_no_worse_than_the_largest_magnitude(bert: LoadedModel, batches: list[Batch]) -> None:
    """By the error of the normalized sum, on rows of a stream with elements a hundred times its bulk."""
    module = injected(bert)
    prepared = prepare(module, MicroBatches.of(batches, 8), ALL, [MAX], replace(PLAIN, clip_search=True))
    table, report = finish(prepared, MAX)
    assert table.algorithm == "search"
    assert len(report["clip_search"]) == 8  # two operands of two adds in two layers
    assert all(0 < row["amax"] <= row["largest"] for row in report["clip_search"])
    for name, (local, residual) in prepared.observed.residuals.items() if prepared.observed else ():
        exact = normalized(local.rows + residual.rows)

        def error(
            first: float,
            second: float,
            exact: Tensor = exact,
            pair: tuple[Tensor, Tensor] = (local.rows, residual.rows),
        ) -> float:
            return float(
                (normalized(fake_quantize(pair[0], first) + fake_quantize(pair[1], second)) - exact).square().mean()
            )

        found = [
            float(getattr(module.get_submodule(name), f"add_{o}_input_quantizer").amax) for o in ("local", "residual")
        ]
        assert error(*found) <= error(float(local.largest.max()), float(residual.largest.max())) * 1.05


def test_smoothing_factor_is_smoothquants() -> None:
    """Half-way: activations and columns then have the same largest magnitudes, up to one common factor."""
    largest, weight = torch.tensor([1.0, 16.0, 4.0]), torch.tensor([[2.0, 0.5, -1.0], [-4.0, 1.0, 1.0]])
    factor = smoothing_factor(largest, weight, 0.5)
    activations, columns = largest * factor, weight.abs().amax(0) / factor
    torch.testing.assert_close(activations / columns, (activations / columns)[0].expand(3))
    assert float(activations.amax()) == pytest.approx(16.0)


def test_query_factor_evens_both_sides_out() -> None:
    query, key = torch.tensor([1.0, 1.0, 16.0]), torch.tensor([1.0, 16.0, 1.0])
    factor = query_factor(query, key)
    assert factor.tolist() == [1.0, 4.0, 0.25]
    assert (query * factor).tolist() == [1.0, 4.0, 4.0]
    assert (key / factor).tolist() == [1.0, 4.0, 4.0]
    assert power_of_two(torch.tensor([1e9, 0.6, 1e-9])).tolist() == [64.0, 0.5, 2.0**-6]


def test_softmax_scale_needs_no_data(bert: LoadedModel, batches: list[Batch]) -> None:
    module = treated(bert, batches, Treatments())
    scores = [point for point in quantizers(module).values() if point.layout == "scores"]
    assert scores and all(float(point.amax) == 1.0 for point in scores)


def test_bias_correction_makes_the_mean_output_exact(bert: LoadedModel, batches: list[Batch]) -> None:
    """On the rows it was computed from."""
    module = injected(bert)
    plan = MicroBatches.of(batches, 8)
    prepared = prepare(module, plan, ALL, [MSE], replace(PLAIN, bias_correction=True))
    finish(prepared, MSE)
    assert prepared.observed is not None
    for group in prepared.observed.groups:
        for linear in group.linears.values():
            rows = group.seen.rows
            quantized = fake_quantize(rows, linear._input_quantizer.amax) @ linear.quantized_weight.T
            exact = rows @ linear.effective_weight.T
            gap = (quantized + linear._bias_shift - exact).mean(0)
            assert float(gap.detach().abs().max()) < 1e-4


# Determinism


@pytest.mark.parametrize("round_type", ["adaround", "gptq"])
def test_two_runs_give_the_same_bytes(bert: LoadedModel, batches: list[Batch], round_type: str) -> None:
    treatments = Treatments(round_type=round_type)
    first, second = (treated(bert, batches, treatments, named_spec("linear")).state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_batch_size_changes_no_treatment(bert: LoadedModel, batches: list[Batch]) -> None:
    found = []
    for size in (1, 4, 16):
        module = injected(bert)
        finish(prepare(module, MicroBatches.of(batches, size), ALL, [MSE], Treatments()), MSE)
        found.append(module.state_dict())
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in other)


def test_codes_belong_to_the_quantized_weight(bert: LoadedModel, batches: list[Batch]) -> None:
    module = treated(bert, batches, Treatments())
    quantized = outputs(module, batches, True)
    drop_rounding(module)
    assert all(linear._codes is None and linear._bias_shift is None for linear in linears(module).values())
    assert not torch.equal(outputs(module, batches, True), quantized)


@pytest.mark.parametrize("round_type", ["adaround", "gptq"])
def test_folded_rounding_computes_the_same_from_the_weights_themselves(
    bert: LoadedModel, batches: list[Batch], round_type: str
) -> None:
    """Nearest codes of the new weights are the chosen ones, but for those that set a row's scale; none moved far."""
    module = treated(bert, batches, Treatments(round_type=round_type), named_spec("linear"))
    chosen = {name: linear._codes for name, linear in linears(module).items() if linear._codes is not None}
    before = {name: linears(module)[name].effective_weight.detach().clone() for name in chosen}
    quantized = outputs(module, batches, True)
    fold_rounding(module)
    others = total = 0
    for name, codes in chosen.items():
        linear = linears(module)[name]
        assert linear._codes is None and linear._bias_shift is None
        weight, scale, _ = weight_and_scale(linear)
        assert torch.equal(weight_amax(weight, 0), weight_amax(before[name], 0))
        others += int((torch.round(weight / scale) != codes).sum())
        total += codes.numel()
        same = torch.round(before[name] / scale) == codes
        torch.testing.assert_close(weight[same], before[name][same])
    assert others < 0.02 * total
    torch.testing.assert_close(outputs(module, batches, True), quantized, atol=0.05, rtol=0.0)


# Checkpoint and export


def test_checkpoint_brings_every_treatment_back(bert: LoadedModel, batches: list[Batch], tmp_path: Path) -> None:
    loaded = load_model(str(bert.folder))
    loaded.model.load_state_dict(bert.model.state_dict())
    inject(loaded.model, ALL)
    table, _ = finish(prepare(loaded.module(), MicroBatches.of(batches, 8), ALL, [MSE], Treatments()), MSE)
    write_checkpoint(loaded, ALL, table, tmp_path / "checkpoint")
    again, _, _ = load_checkpoint(tmp_path / "checkpoint")
    used = {name.rpartition(".")[2] for name in treatment_tensors(again.module())}
    own_test = {"_skip_factor"}  # of shared skips, in test_share_skips.py
    assert used == {*QuantLinear.TREATMENTS, *Residual.TREATMENTS} - own_test
    assert torch.equal(outputs(again.module(), batches, True), outputs(loaded.module(), batches, True))
    floating = load_model(str(tmp_path / "checkpoint"))  # what verify compares with
    original = [bert.model(**batch).logits for batch in batches]
    assert all(
        torch.equal(floating.model(**batch).logits, logits) for batch, logits in zip(batches, original, strict=True)
    )


def test_folding_keeps_the_quantized_outputs(bert: LoadedModel, batches: list[Batch]) -> None:
    module = treated(bert, batches, Treatments())
    before = outputs(module, batches, True)
    with folded(module):
        inside = outputs(module, batches, True)
        assert all(linear._codes is None for linear in linears(module).values())
    assert torch.equal(inside, before)
    assert torch.equal(outputs(module, batches, True), before)
