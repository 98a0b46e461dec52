"""The twenty points of an encoder layer, under exactly the attribute names of QDQBERT's modeling_qdqbert.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrate import calibrate
from qdq.inject import inject, quantizers
from qdq.inject.quantizer import TensorQuantizer
from qdq.inject.spec import named_spec
from qdq.loading.model import LoadedModel

LoadTiny = Callable[..., LoadedModel]

LINEARS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
LAYER = {
    *(f"{linear}._{side}_quantizer" for linear in LINEARS for side in ("input", "weight")),
    *(f"attention.self.matmul_{operand}_input_quantizer" for operand in "qkva"),
    *(f"attention.output.add_{operand}_input_quantizer" for operand in ("local", "residual")),
    *(f"output.add_{operand}_input_quantizer" for operand in ("local", "residual")),
}
BERT_LIKE = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "electra": "electra",
    "ernie": "ernie",
}


def paths(model: nn.Module) -> set[str]:
    return {path for path, module in model.named_modules() if isinstance(module, TensorQuantizer)}


@pytest.mark.document_row("003/1")
def test_a_layer_has_twenty_points() -> None:
    assert len(LAYER) == 20


@pytest.mark.document_row("003/1")
@pytest.mark.parametrize("model_type", BERT_LIKE)
def test_the_attribute_names_are_those_of_qdqbert(model_type: str, load_tiny: LoadTiny) -> None:
    loaded = load_tiny(model_type, "question-answering")
    inject(loaded.model, named_spec("qdqbert"))
    prefix = f"{BERT_LIKE[model_type]}.encoder.layer"
    assert paths(loaded.model) == {f"{prefix}.{layer}.{name}" for layer in (0, 1) for name in LAYER}


def test_point_names_are_the_paths_without_the_underscore(load_tiny: LoadTiny) -> None:
    loaded = load_tiny("bert")
    inject(loaded.model, named_spec("qdqbert"))
    assert set(quantizers(loaded.model)) == {path.replace("._", ".") for path in paths(loaded.model)}


def test_activations_are_per_tensor_and_weights_per_output_channel(load_tiny: LoadTiny) -> None:
    model = load_tiny("bert").model
    inject(model, named_spec("qdqbert"))
    for path in paths(model):
        point = model.get_submodule(path)
        assert point.axis == (0 if path.endswith("_weight_quantizer") else None)
        assert point.num_bits == 8


@pytest.mark.parametrize(("layers", "points"), [(12, 240), (24, 480)])
def test_bert_base_has_240_points_and_bert_large_480(layers: int, points: int) -> None:
    config = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=8
    )
    model = BertModel(config)
    inject(model, named_spec("qdqbert"))
    assert len(paths(model)) == points


def test_calibrated_buffers_have_the_keys_of_a_qdqbert_state_dict(
    load_tiny: LoadTiny, encode: Callable[..., dict[str, torch.Tensor]]
) -> None:
    loaded = load_tiny("bert")
    inject(loaded.model, named_spec("qdqbert"))
    calibrate(loaded.module(), [encode(loaded)], named_spec("qdqbert"), algorithm_named("max"))
    amax = {key: value for key, value in loaded.model.state_dict().items() if key.endswith("_amax")}
    assert set(amax) == {f"{path}._amax" for path in paths(loaded.model)}
    assert amax["bert.encoder.layer.1.output.dense._weight_quantizer._amax"].shape == (32, 1)
    assert amax["bert.encoder.layer.1.output.dense._input_quantizer._amax"].shape == ()

    fresh = load_tiny("bert").model
    inject(fresh, named_spec("qdqbert"))
    fresh.load_state_dict(loaded.model.state_dict(), strict=False)
    batch = encode(loaded)
    with torch.no_grad():
        assert torch.equal(fresh(**batch).logits, loaded.model(**batch).logits)
