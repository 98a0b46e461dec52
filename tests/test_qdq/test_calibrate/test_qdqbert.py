"""QDQBERT's classes: made, loaded, calibrated, trained, saved, and compiled as the checkpoints they are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig

from qdq.calibrate import qdqbert
from qdq.calibrate.checkpoint import import_qdqbert, read_amax
from qdq.errors import CalibrationError, ModelError
from qdq.inject import inject, quantizers
from qdq.inject.scale import scale_of
from qdq.inject.spec import named_spec
from qdq.loading.kinds import detect_task
from qdq.loading.model import LoadedModel, load_model

LoadTiny = Callable[..., LoadedModel]
Encode = Callable[..., dict[str, torch.Tensor]]
Checkpoint = Callable[..., Path]


def calibrate(model: nn.Module, batch: dict[str, torch.Tensor], ends: str = "_input_quantizer", *method: Any) -> None:
    """As the documentation does it."""
    for name, module in model.named_modules():
        if name.endswith(ends):
            module.enable_calib()
            module.disable_quant()
    with torch.no_grad():
        model(**batch)
    for name, module in model.named_modules():
        if name.endswith(ends):
            module.load_calib_amax(*method if module.layout != "weight" else ())
            module.enable_quant()


@pytest.mark.document_row("003/7")
def test_the_documented_names_are_there() -> None:
    from qdq.calibrate.qdqbert import (
        QDQBertConfig,
        QDQBertForMaskedLM,
        QDQBertForMultipleChoice,
        QDQBertForNextSentencePrediction,
        QDQBertForQuestionAnswering,
        QDQBertForSequenceClassification,
        QDQBertForTokenClassification,
        QDQBertLMHeadModel,
        QDQBertModel,
    )

    classes = (QDQBertForMaskedLM, QDQBertForMultipleChoice, QDQBertForNextSentencePrediction, QDQBertLMHeadModel)
    classes += (QDQBertForQuestionAnswering, QDQBertForSequenceClassification, QDQBertForTokenClassification)
    assert {*classes, QDQBertModel} == set(qdqbert.MODELS) and len(qdqbert.MODELS) == 8
    assert isinstance(AutoConfig.for_model("qdqbert"), QDQBertConfig)


@pytest.mark.document_row("003/1", "003/7", "003/8")
@pytest.mark.parametrize("cls", qdqbert.MODELS, ids=lambda cls: cls.__name__)
def test_a_class_is_made_saved_and_found_again(cls: Any, tmp_path: Path) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "max_position_embeddings": 16}
    config = qdqbert.QDQBertConfig(**sizes, is_decoder=cls is qdqbert.QDQBertLMHeadModel)
    torch.manual_seed(1)
    model = cls(config).eval()
    assert len(quantizers(model)) == 40
    ids = torch.arange(1, 13).reshape(1, 2, 6) if cls is qdqbert.QDQBertForMultipleChoice else torch.arange(6)[None]
    calibrate(model, {"input_ids": ids}, "_quantizer")
    model.save_pretrained(tmp_path)
    auto = getattr(transformers, detect_task([cls.__name__], "").auto_class)
    again = auto.from_pretrained(tmp_path)
    assert type(again) is cls
    with torch.no_grad():
        for one, other in zip(model(ids).to_tuple(), again(ids).to_tuple(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    for name, point in quantizers(model).items():
        assert torch.equal(scale_of(point.amax, 8), scale_of(quantizers(again)[name].amax, 8))


def test_bert_weights_are_taken_and_a_saved_model_is_a_qdqbert_checkpoint(
    tiny_checkpoint: Checkpoint, load_tiny: LoadTiny, encode: Encode, tmp_path: Path
) -> None:
    source = tiny_checkpoint("bert")
    batch = encode(load_tiny("bert"))
    model = qdqbert.QDQBertForSequenceClassification.from_pretrained(source)
    for point in quantizers(model).values():
        point.disable()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, load_tiny("bert").model(**batch).logits, rtol=0, atol=1e-5)
    for point in quantizers(model).values():
        point.enable()
    calibrate(model, batch)
    shutil.copytree(source, tmp_path / "saved", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model.save_pretrained(tmp_path / "saved")
    # Read by its own class, and by this project's loader as any QDQBERT checkpoint
    again = qdqbert.QDQBertForSequenceClassification.from_pretrained(tmp_path / "saved")
    loaded = load_model(str(tmp_path / "saved"))
    inject(loaded.model, named_spec("qdqbert"))
    imported, unmatched = import_qdqbert(loaded.model, read_amax(tmp_path / "saved"))
    assert len(imported) == 28 and not unmatched
    with torch.no_grad():
        expected = model(**batch).logits
        assert torch.equal(again(**batch).logits, expected)
        torch.testing.assert_close(loaded.model(**batch).logits, expected, rtol=0, atol=1e-6)


def test_options_of_from_pretrained_are_those_of_transformers(tiny_checkpoint: Checkpoint) -> None:
    model, info = qdqbert.QDQBertForTokenClassification.from_pretrained(
        tiny_checkpoint("bert", "feature-extraction"), num_labels=5, output_loading_info=True
    )
    assert model.config.num_labels == 5 and model.config.model_type == "qdqbert"
    assert sorted(info["missing_keys"]) == ["classifier.bias", "classifier.weight"]


def test_another_family_is_refused(tiny_checkpoint: Checkpoint) -> None:
    with pytest.raises(ModelError, match="is a checkpoint of 'roberta'; QDQBertModel takes those of bert and qdqbert"):
        qdqbert.QDQBertModel.from_pretrained(tiny_checkpoint("roberta", "feature-extraction"))


def test_training_changes_weights_and_is_exported_as_trained(
    tiny_checkpoint: Checkpoint, load_tiny: LoadTiny, encode: Encode, tmp_path: Path
) -> None:
    """Weights without a stored range are exported with the range they have then, however they were changed."""
    import onnxruntime

    batch = encode(load_tiny("bert"), 4)
    source = tiny_checkpoint("bert", num_hidden_layers=1)
    model = qdqbert.QDQBertForSequenceClassification.from_pretrained(source)
    calibrate(model, batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(**batch, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    optimizer.step()
    model.bert.encoder.layer[0].intermediate.dense.weight.data.mul_(3)
    with torch.no_grad():
        expected = model(**batch).logits
    names = ("input_ids", "attention_mask", "token_type_ids")
    torch.onnx.export(model, tuple(batch[name] for name in names), tmp_path / "model.onnx", verbose=False)
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # node by node
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", plain)
    found = session.run(
        None, {one.name: batch[name].numpy() for one, name in zip(session.get_inputs(), names, strict=True)}
    )
    torch.testing.assert_close(torch.from_numpy(found[0]), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("method", [("percentile",), ("entropy",), ("mse",)], ids=lambda method: method[0])
def test_a_histogram_is_read_by_the_method_that_load_calib_amax_names(
    method: tuple[Any, ...], tiny_checkpoint: Checkpoint, load_tiny: LoadTiny, encode: Encode, monkeypatch: Any
) -> None:
    from pytorch_quantization import nn as quant_nn
    from pytorch_quantization.tensor_quant import QuantDescriptor

    monkeypatch.setattr(
        quant_nn.QuantLinear, "default_quant_desc_input", QuantDescriptor(num_bits=8, calib_method="histogram")
    )
    model = qdqbert.QDQBertForSequenceClassification.from_pretrained(tiny_checkpoint("bert"))
    batch = encode(load_tiny("bert"))
    calibrate(model, batch, "_input_quantizer", *method)
    assert all(float(point.amax) > 0 for point in quantizers(model).values() if point.layout != "weight")
    point = next(iter(quantizers(model).values()))
    with pytest.raises(CalibrationError, match="unknown method 'median'; valid: entropy, mse, percentile"):
        point.load_calib_amax("median")
    fresh = qdqbert.MethodCalibrator()
    fresh.update(torch.ones(2, 2))
    with pytest.raises(CalibrationError, match=r"p: name the histogram's method: load_calib_amax\('percentile'"):
        fresh.amax("p")
