"""A tiny random BERT classifier with all twenty points per layer, calibrated, and its exports (three per session)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from export.to_onnx import _trace, export_onnx
from qdq.inject import QuantSpec, inject, quantizers
from qdq.inject.quantizer import TensorQuantizer, folded, weight_amax

Feeds = dict[str, NDArray[Any]]


class Classifier(nn.Module):
    """What export_onnx takes: inputs by name, a tuple of outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor]:
        return (self.model(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits,)


@dataclass(frozen=True)
class Tiny:
    """The calibrated module and everything a test compares it with."""

    module: Classifier
    points: tuple[str, ...]
    quantizers: Mapping[str, TensorQuantizer]

    def feeds(self, batch: int, sequence: int, seed: int = 0) -> Feeds:
        """Random ids; every second row is padded in its last third."""
        rng = np.random.default_rng(seed)
        mask = np.ones((batch, sequence), np.int64)
        mask[1::2, sequence - sequence // 3 :] = 0
        kinds = (np.arange(sequence) > sequence // 2).astype(np.int64) * mask
        return {
            "input_ids": rng.integers(0, 100, (batch, sequence)),
            "attention_mask": mask,
            "token_type_ids": kinds,
        }

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The torch fake-quant module on one batch."""
        with torch.no_grad():
            (logits,) = self.module(**{name: torch.from_numpy(value) for name, value in feeds.items()})
        return {"logits": logits.numpy()}

    def export(self, path: Path) -> Path:
        with folded(self.module.model):
            export_onnx(self.module, as_tensors(self.feeds(4, 12)), ["logits"], path)
        return path


def as_tensors(feeds: Feeds) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in feeds.items()}


def build() -> Tiny:
    torch.set_num_threads(1)
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    config.num_labels = 3
    model = BertForSequenceClassification(config)
    model.train(False)
    with torch.no_grad():
        for parameter in model.parameters():  # no two tensors alike, or the exporter would merge them
            parameter.add_(torch.randn_like(parameter) * 0.1)
    placement = inject(model, QuantSpec())
    tiny = Tiny(Classifier(model).train(False), tuple(point.name for point in placement.placed), quantizers(model))
    calibrate(tiny)
    return tiny


def calibrate(tiny: Tiny) -> None:
    for name, quantizer in tiny.quantizers.items():
        if name.endswith("weight_quantizer"):
            linear = tiny.module.model.get_submodule(name.rpartition(".")[0])
            assert isinstance(linear, nn.Linear)
            quantizer.set_amax(weight_amax(linear.weight, quantizer._axis))
        else:
            quantizer.disable_quant()
            quantizer.enable_calib()
    for seed in range(3):
        tiny.run(tiny.feeds(4, 12, seed))
    for name, quantizer in tiny.quantizers.items():
        if not name.endswith("weight_quantizer"):
            quantizer.load_calib_amax()
            quantizer.enable_quant()


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return build()


@pytest.fixture(scope="session")
def canonical(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """First export: the canonical graph."""
    return tiny.export(tmp_path_factory.mktemp("first") / "model.qdq.onnx")


@pytest.fixture(scope="session")
def canonical_again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Second export: the same model built and exported anew."""
    return build().export(tmp_path_factory.mktemp("second") / "again.qdq.onnx")


@pytest.fixture(scope="session")
def traced(tiny: Tiny) -> Callable[[], ir.Model]:
    """Third export: what torch.onnx wrote, before tidying; every call gives a fresh copy."""
    with folded(tiny.module.model):
        program = _trace(tiny.module, as_tensors(tiny.feeds(4, 12)), ["logits"])
    program.optimize()
    content = ir.to_proto(program.model).SerializeToString()  # bytes, because an ir.Model shares tensors with its proto
    return lambda: ir.from_proto(onnx.load_from_string(content))
