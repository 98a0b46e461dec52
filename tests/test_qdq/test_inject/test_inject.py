"""Injection: what is placed and why, the effect of every switch, and no effect on anything but the one model."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_quantization import nn as quant_nn
from torch import nn
from transformers import AutoModelForSequenceClassification, BertModel
from transformers.models.bert import modeling_bert

from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrate import calibrate, clip_gelu, freeze_weights
from qdq.errors import ExportError, ModelError
from qdq.inject import QuantSpec, inject, quantizers
from qdq.inject.blocks import ResidualAdd
from qdq.inject.families import FAMILIES
from qdq.inject.placement import Placement
from qdq.inject.quantizer import TensorQuantizer
from qdq.inject.spec import PLACEMENTS, named_spec
from qdq.loading.model import LoadedModel

LoadTiny = Callable[..., LoadedModel]
Encode = Callable[..., dict[str, torch.Tensor]]
MAX = algorithm_named("max")


@pytest.fixture
def injected(load_tiny: LoadTiny, encode: Encode) -> Callable[..., tuple[LoadedModel, Placement]]:
    """Factory ``(spec, model_type, task) -> (loaded, placement)`` of a calibrated model."""

    def build(spec: QuantSpec, *arguments: str, **config: Any) -> tuple[LoadedModel, Placement]:
        loaded = load_tiny(*arguments, **config)
        placement = inject(loaded.model, spec)
        calibrate(loaded.module(), [encode(loaded)], spec, MAX)
        return loaded, placement

    return build


def run(loaded: LoadedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = loaded.module()(**batch)[0]
    return output


def kept(placement: Placement, text: str) -> set[str]:
    """Names of placed points that contain `text`."""
    return {point.name for point in placement.placed if text in point.name}


# --- nothing else changes ------------------------------------------------------------------------------------------


def test_another_model_of_the_class_computes_the_same_bits_as_before(load_tiny: LoadTiny, encode: Encode) -> None:
    early = load_tiny("bert")
    batch = encode(early)
    before = run(early, batch)
    inject(load_tiny("bert").model, named_spec("qdqbert"))
    assert torch.equal(run(early, batch), before)
    assert torch.equal(run(load_tiny("bert"), batch), before)


def test_a_model_that_shares_the_configuration_object_is_untouched(load_tiny: LoadTiny) -> None:
    config: Any = load_tiny("bert").model.config
    one, other = (BertModel(config).train(False) for _ in range(2))
    ids = torch.arange(5, 17).reshape(2, 6)
    with torch.no_grad():
        before = other(ids).last_hidden_state
        inject(one, named_spec("qdqbert"))
        assert one.config is not config
        assert {id(module.config) for module in one.modules() if hasattr(module, "config")} == {id(one.config)}
        assert torch.equal(other(ids).last_hidden_state, before)


def test_no_class_is_modified(load_tiny: LoadTiny, encode: Encode) -> None:
    def classes() -> dict[str, dict[str, Any]]:
        found = inspect.getmembers(modeling_bert, inspect.isclass)
        found += [("Linear", nn.Linear), ("QuantLinear", quant_nn.QuantLinear)]
        found += [("TensorQuantizer", quant_nn.TensorQuantizer), ("Module", nn.Module)]
        return {name: dict(vars(cls)) for name, cls in found}

    before = classes()
    loaded = load_tiny("bert")
    inject(loaded.model, named_spec("qdqbert"))
    calibrate(loaded.module(), [encode(loaded)], named_spec("qdqbert"), MAX)
    assert classes() == before
    assert type(nn.Linear(2, 2)) is nn.Linear


# --- the model stays what it was -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "albert", "mpnet"])
def test_parameters_keep_their_names_and_values(model_type: str, load_tiny: LoadTiny) -> None:
    original, loaded = load_tiny(model_type), load_tiny(model_type)
    inject(loaded.model, named_spec("qdqbert"))
    expected, actual = original.model.state_dict(), loaded.model.state_dict()
    assert set(actual) == set(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_a_saved_injected_model_is_read_as_the_floating_point_model(
    load_tiny: LoadTiny, encode: Encode, tmp_path: Path
) -> None:
    original = load_tiny("bert")
    loaded = load_tiny("bert")
    inject(loaded.model, named_spec("qdqbert"))
    loaded.model.save_pretrained(tmp_path)
    assert "qdq" not in (tmp_path / "config.json").read_text(encoding="utf-8")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    batch = encode(original)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, run(original, batch))


def test_an_injected_model_can_be_copied_and_trained(load_tiny: LoadTiny, encode: Encode) -> None:
    loaded = load_tiny("bert")
    inject(loaded.model, named_spec("qdqbert"))
    batch = encode(loaded)
    calibrate(loaded.module(), [batch], named_spec("qdqbert"), MAX)
    twin = copy.deepcopy(loaded.model)
    with torch.no_grad():
        assert torch.equal(twin(**batch).logits, loaded.model(**batch).logits)
    twin.train()
    twin(**batch, labels=torch.arange(12) % 2).loss.backward()
    weight = twin.get_parameter("bert.encoder.layer.0.attention.self.query.weight")
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) > 0


def test_injecting_twice_and_cross_attention_are_refused(load_tiny: LoadTiny) -> None:
    model = load_tiny("bert").model
    inject(model, named_spec("linear"))
    with pytest.raises(ModelError, match="already carries quantizers"):
        inject(model, named_spec("linear"))
    config: Any = load_tiny("bert").model.config
    config.is_decoder = config.add_cross_attention = True
    with pytest.raises(ModelError, match="cross-attention"):
        inject(BertModel(config), named_spec("linear"))


def test_an_unsupported_family_is_refused_before_anything_changes(load_tiny: LoadTiny) -> None:
    model = load_tiny("bert").model
    setattr(model.config, "model_type", "deberta-v2")  # noqa: B010  # a class variable to the type checker
    before = [type(module) for module in model.modules()]
    with pytest.raises(ModelError, match=r"'deberta-v2' is not supported; supported families: bert, roberta"):
        inject(model, named_spec("linear"))
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_accurate"])
def test_every_form_of_gelu_becomes_the_one_that_exports_as_one_op(
    activation: str, load_tiny: LoadTiny, encode: Encode
) -> None:
    original, loaded = (load_tiny("bert", hidden_act=activation) for _ in range(2))
    inject(loaded.model, named_spec("linear"))
    assert sum(isinstance(module, nn.GELU) for module in loaded.model.modules()) == 2
    for point in quantizers(loaded.model).values():
        point.disable_quant()
    batch = encode(loaded)
    torch.testing.assert_close(run(loaded, batch), run(original, batch), rtol=0, atol=1e-5)


def test_another_activation_stays(load_tiny: LoadTiny) -> None:
    loaded = load_tiny("bert", hidden_act="relu")
    inject(loaded.model, named_spec("linear"))
    assert not any(isinstance(module, nn.GELU) for module in loaded.model.modules())


# --- placement -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_named_placement_places_its_points_and_declines_the_rest_with_a_reason(
    name: str, load_tiny: LoadTiny
) -> None:
    spec = named_spec(name)
    loaded = load_tiny("bert")
    placement = inject(loaded.model, spec)
    assert placement.counts() == {
        "linear_input": (0 if name == "dynamic" else 12, 14),  # its scale is found at run time
        "linear_weight": (12, 14),
        "embedding": (0, 3),
        "matmul": (2 * len(spec.matmul), 8),
        "residual": (4 * len(spec.residual), 8),
    }
    rows = placement.as_json()["points"]
    assert all(set(row) == {"name", "kind", "placed", "reason"} and row["reason"] for row in rows)
    declined = {row["name"]: row["reason"] for row in rows if not row["placed"]}
    assert "pooler stays float" in declined["bert.pooler.dense.input_quantizer"]
    assert "head stays float" in declined["classifier.weight_quantizer"]
    for operand in set("qkav") - set(spec.matmul):
        reason = declined[f"bert.encoder.layer.1.attention.self.matmul_{operand}_input_quantizer"]
        assert reason.startswith(f"{name} leaves matmul operand {operand} float: ")
        why = reason.split(": ", 1)[1]
        better = why.partition("--placement ")[2].split()[0]
        assert operand in PLACEMENTS[better].get("matmul", "qkav"), "the way out that the reason names"


def test_linears_can_be_left_out(load_tiny: LoadTiny) -> None:
    placement = inject(load_tiny("bert").model, named_spec("qdqbert", linear=False))
    assert {point.kind for point in placement.placed} == {"matmul", "residual"}


@pytest.mark.parametrize("operands", [("q",), ("k", "v"), ("a",)])
def test_a_subset_of_matmul_operands(operands: tuple[str, ...], load_tiny: LoadTiny) -> None:
    loaded = load_tiny("bert")
    placement = inject(loaded.model, named_spec("linear", matmul=operands))
    for operand in "qkav":
        name = f"bert.encoder.layer.0.attention.self.matmul_{operand}_input_quantizer"
        assert bool(kept(placement, name)) == (operand in operands) == (name in quantizers(loaded.model))


@pytest.mark.parametrize("operand", ["local", "residual"])
def test_one_operand_of_the_residual_adds(operand: str, load_tiny: LoadTiny) -> None:
    placement = inject(load_tiny("distilbert").model, named_spec("linear", residual=(operand,)))
    assert kept(placement, "_add.") == {
        f"distilbert.transformer.layer.{layer}.{block}_add.add_{operand}_input_quantizer"
        for layer in (0, 1)
        for block in ("attention", "ffn")
    }


def test_points_are_disabled_by_regular_expression_and_by_keyword(load_tiny: LoadTiny) -> None:
    spec = named_spec("qdqbert", disable_layers=r"layer\.1\.", disable_keywords=("intermediate", "matmul_a"))
    loaded = load_tiny("bert")
    placement = inject(loaded.model, spec)
    reasons = {point.name: point.reason for point in placement.points if not point.placed}
    assert reasons["bert.encoder.layer.1.output.dense.weight_quantizer"] == r"disable_layers 'layer\.1\.' matches"
    assert reasons["bert.encoder.layer.0.intermediate.dense.input_quantizer"] == "disable_keywords has 'intermediate'"
    assert not kept(placement, "layer.1.")
    assert not kept(placement, "intermediate")
    assert len(kept(placement, "layer.0.")) == 20 - 2 - 1
    assert set(quantizers(loaded.model)) == {point.name for point in placement.placed}


def test_an_explicit_enable_wins_and_reaches_pooler_and_head(
    injected: Callable[..., tuple[LoadedModel, Placement]], encode: Encode
) -> None:
    spec = named_spec("linear", disable_layers=".*", enable_layers=r"pooler|^classifier|layer\.0\.output\.dense")
    loaded, placement = injected(spec, "bert")
    assert {point.name for point in placement.placed} == {
        f"{module}.{side}_quantizer"
        for module in ("bert.pooler.dense", "classifier", "bert.encoder.layer.0.output.dense")
        for side in ("input", "weight")
    }
    assert bool(run(loaded, encode(loaded)).isfinite().all())
    assert float(quantizers(loaded.model)["classifier.input_quantizer"].amax) <= 1.0  # behind the pooler's tanh


@pytest.mark.parametrize(
    ("model_type", "path"), [("electra", "embeddings_project"), ("albert", "encoder.embedding_hidden_mapping_in")]
)
def test_linears_of_the_embedding_block_are_a_switch(model_type: str, path: str, load_tiny: LoadTiny) -> None:
    name = f"{model_type}.{path}.weight_quantizer"
    without = inject(load_tiny(model_type).model, named_spec("linear"))
    assert not kept(without, name)
    assert "embeddings: true" in next(point.reason for point in without.points if point.name == name)
    assert kept(inject(load_tiny(model_type).model, named_spec("linear", embeddings=True)), name)


def test_each_operand_of_a_residual_add_passes_its_own_point() -> None:
    add = ResidualAdd()
    local, residual = torch.full((1, 1, 4), 1.0), torch.full((1, 1, 4), 1.0)
    for operand, amax in (("local", 0.5), ("residual", 0.25)):
        point = TensorQuantizer(operand)
        point.set_amax(torch.tensor(amax))
        point.register_forward_pre_hook(lambda module, inputs: order.append((module.point, inputs[0])))
        setattr(add, f"add_{operand}_input_quantizer", point)
    order: list[tuple[str, torch.Tensor]] = []
    torch.testing.assert_close(add(local, residual), torch.full((1, 1, 4), 0.75), rtol=0, atol=1e-3)
    assert order[0][0] == "local" and order[0][1] is local
    assert order[1][0] == "residual" and order[1][1] is residual


# --- how points quantize -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 8), (4, 8), (8, 3)])
def test_fewer_bits_give_fewer_codes(
    weight_bits: int,
    activation_bits: int,
    injected: Callable[..., tuple[LoadedModel, Placement]],
    encode: Encode,
) -> None:
    loaded, _ = injected(named_spec("qdqbert", weight_bits=weight_bits, activation_bits=activation_bits), "bert")
    layer: Any = loaded.model.get_submodule("bert.encoder.layer.0.intermediate.dense")
    values: list[torch.Tensor] = []
    layer._input_quantizer.register_forward_hook(lambda module, inputs, output: values.append(output))
    run(loaded, encode(loaded))
    channels = [len(set(channel.tolist())) for channel in layer._weight_quantizer(layer.effective_weight)]
    assert max(channels) <= min(2**weight_bits, 32)  # a channel has 32 weights
    assert min(channels) > 2 ** (min(weight_bits, 5) - 1) - 4
    assert 2 ** (activation_bits - 1) < len(set(values[0].flatten().tolist())) <= 2**activation_bits


def test_weights_have_one_scale_per_channel_or_one_per_tensor(
    injected: Callable[..., tuple[LoadedModel, Placement]],
) -> None:
    name = "bert.encoder.layer.0.intermediate.dense.weight_quantizer"
    per_channel = quantizers(injected(named_spec("linear"), "bert")[0].model)[name].amax
    per_tensor = quantizers(injected(named_spec("linear", per_channel_weights=False), "bert")[0].model)[name].amax
    assert per_channel.shape == (64, 1)
    assert per_tensor.shape == ()
    assert float(per_channel.max()) == float(per_tensor)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_fused_qkv_shares_the_largest_amax(
    model_type: str, injected: Callable[..., tuple[LoadedModel, Placement]]
) -> None:
    apart = quantizers(injected(named_spec("qdqbert", per_channel_weights=False), model_type)[0].model)
    fused = quantizers(injected(named_spec("trt"), model_type)[0].model)
    groups: dict[str, list[str]] = {}
    for name in fused:
        operand = re.fullmatch(r"(.*)\.matmul_[qkv]_input_quantizer", name)
        weight = re.fullmatch(r"(.*)\.(query|key|value|[qkv]|[qkv]_lin)\.weight_quantizer", name)
        if operand or weight:
            owner = (operand or weight).group(1)  # type: ignore[union-attr]
            groups.setdefault(f"{owner} {'operands' if operand else 'weights'}", []).append(name)
    assert len(groups) == (2 if model_type == "albert" else 4)
    for names in groups.values():
        assert len(names) == 3
        assert {float(fused[name].amax) for name in names} == {max(float(apart[name].amax) for name in names)}
    others = set(fused) - {name for names in groups.values() for name in names}
    assert all(torch.equal(fused[name].amax, apart[name].amax) for name in others)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_clip_gelu_bounds_what_follows_the_activation_and_nothing_else(
    model_type: str, injected: Callable[..., tuple[LoadedModel, Placement]]
) -> None:
    loaded, _ = injected(named_spec("qdqbert"), model_type)
    before = {name: point.amax.clone() for name, point in quantizers(loaded.model).items()}
    changed = clip_gelu(loaded.model, loaded.family, 0.01)
    after = quantizers(loaded.model)
    differing = {name for name in before if not torch.equal(before[name], after[name].amax)}
    layers = 1 if model_type == "albert" else 2
    assert changed == len(differing) == layers
    assert all(float(after[name].amax) == pytest.approx(0.01) for name in differing)
    feed_forward = {name.rpartition(".")[0] for name in differing}
    sizes = {loaded.model.get_submodule(path).in_features for path in feed_forward}
    assert sizes == {64}  # the intermediate size: the second linear of the feed-forward network
    assert clip_gelu(loaded.model, loaded.family, 1e6) == 0


def test_weight_amax_is_recomputed_only_on_request(load_tiny: LoadTiny, encode: Encode) -> None:
    loaded = load_tiny("bert")
    inject(loaded.model, named_spec("linear"))
    point = quantizers(loaded.model)["bert.encoder.layer.0.output.dense.weight_quantizer"]
    imported = torch.full((32, 1), 0.625)
    point.set_amax(imported)
    calibrate(loaded.module(), [encode(loaded)], named_spec("linear"), MAX)
    assert torch.equal(point.amax, imported)
    calibrate(loaded.module(), [encode(loaded)], named_spec("linear", recalibrate_weights=True), MAX)
    weight = loaded.model.get_parameter("bert.encoder.layer.0.output.dense.weight")
    assert torch.equal(point.amax, weight.detach().abs().amax(1, keepdim=True))


def test_the_query_weight_is_measured_with_the_folded_scale(load_tiny: LoadTiny) -> None:
    loaded = load_tiny("bert")
    inject(loaded.model, named_spec("linear"))
    freeze_weights(loaded.model)
    query: Any = loaded.model.get_submodule("bert.encoder.layer.0.attention.self.query")
    assert query.output_scale == 1 / 4  # heads of 16
    assert torch.equal(query._weight_quantizer.amax, query.weight.detach().abs().amax(1, keepdim=True) / 4)


def test_narrow_activations_cannot_be_exported_and_say_so() -> None:
    quantizer = TensorQuantizer("encoder.layer.0.query.input_quantizer", bits=4)
    quantizer.set_amax(torch.tensor(1.0))
    with pytest.raises(ExportError, match=r"encoder\.layer\.0\.query.*4-bit activations"):
        quantizer._constant_pair(torch.ones(2))
