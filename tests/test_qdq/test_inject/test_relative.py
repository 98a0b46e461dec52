"""Relative positions: the class computes them as transformers 4 did, and an injected, exported model the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.to_onnx import export_onnx
from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrate import calibrate
from qdq.inject import inject, quantizers
from qdq.inject.quantizer import folded
from qdq.inject.relative import FAMILIES, KINDS, TABLE, NoPositions, relative_class
from qdq.inject.spec import named_spec
from qdq.loading.model import LoadedModel, load_model

Checkpoint = Callable[..., Path]
Encode = Callable[..., dict[str, torch.Tensor]]
POSITIONS = 64


@pytest.fixture
def relative(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Callable[..., Path]:
    """Factory ``(model_type, kind, **changes) -> folder``: a checkpoint as transformers 4 saved it."""

    def build(model_type: str, kind: str, task: str = "text-classification") -> Path:
        source = tiny_checkpoint(model_type, task, max_position_embeddings=POSITIONS)
        folder = Path(shutil.copytree(source, tmp_path / f"{model_type}-{kind}"))
        weights, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(5)
        for name in [name for name in weights if name.endswith("query.weight")]:
            table = torch.randn(2 * POSITIONS - 1, 16, generator=generator)
            weights[name.replace("query.weight", f"{TABLE}.weight")] = table
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text()) | {"position_embedding_type": kind}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return build


def outputs(loaded: LoadedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = loaded.module()(**batch)[0]
    return output


def as_written(folder: Path, kind: str, ids: torch.Tensor) -> torch.Tensor:
    """A two-layer BERT's states by hand, pair of tokens by pair: q.k, q.d and k.d, all over sqrt(d)."""
    weights = {name.removeprefix("bert."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}

    def linear(name: str, states: torch.Tensor) -> torch.Tensor:
        return states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(states, (32,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12)

    states = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0]
    states = norm("embeddings.LayerNorm", states)
    for layer in range(2):
        path = f"encoder.layer.{layer}"
        q, k, v = (
            linear(f"{path}.attention.self.{name}", states).view(len(ids), 2, 16) for name in ("query", "key", "value")
        )
        table = weights[f"{path}.attention.self.{TABLE}.weight"]
        mixed = torch.zeros(len(ids), 2, 16)
        for head in range(2):
            for i in range(len(ids)):
                scores = []
                for j in range(len(ids)):
                    distance = table[i - j + POSITIONS - 1]
                    score = q[i, head] @ k[j, head] + q[i, head] @ distance
                    scores.append((score + (k[j, head] @ distance if kind == KINDS[1] else 0.0)) / 4.0)
                mixed[i, head] = torch.stack(scores).softmax(0) @ v[:, head]
        attended = norm(
            f"{path}.attention.output.LayerNorm", linear(f"{path}.attention.output.dense", mixed.flatten(1)) + states
        )
        inner = torch.nn.functional.gelu(linear(f"{path}.intermediate.dense", attended))
        states = norm(f"{path}.output.LayerNorm", linear(f"{path}.output.dense", inner) + attended)
    return states


@pytest.mark.parametrize("kind", KINDS)
def test_bert_computes_what_the_paper_writes(kind: str, relative: Callable[..., Path]) -> None:
    folder = relative("bert", kind)
    ids = torch.tensor([[2, 9, 17, 8, 30, 11, 3]])
    found = outputs(
        load_model(str(folder), "feature-extraction"), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    )
    torch.testing.assert_close(found[0], as_written(folder, kind, ids[0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_injected_model_computes_the_same(
    model_type: str, kind: str, relative: Callable[..., Path], encode: Encode
) -> None:
    folder = relative(model_type, kind)
    loaded = load_model(str(folder))
    batch = encode(loaded)
    assert loaded.max_sequence == POSITIONS  # no row is lost to padding
    expected = outputs(loaded, batch)
    inject(loaded.model, named_spec("qdqbert"))
    for point in quantizers(loaded.model).values():
        point.disable_quant()
    torch.testing.assert_close(outputs(loaded, batch), expected, rtol=0, atol=2e-5)
    absolute = json.loads((folder / "config.json").read_text()) | {"position_embedding_type": "absolute"}
    assert absolute["model_type"] == model_type
    one = {name: tensor[:, :1] for name, tensor in batch.items()}  # a single token has a distance of 0 alone
    assert outputs(loaded, one).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_calibrated_saved_and_exported(
    kind: str, relative: Callable[..., Path], encode: Encode, tmp_path: Path
) -> None:
    loaded = load_model(str(relative("bert", kind)))
    batch, spec = encode(loaded), named_spec("linear+qk")
    floating = outputs(loaded, batch)
    inject(loaded.model, spec)
    calibrate(loaded.module(), [batch], spec, algorithm_named("max"))
    quantized = outputs(loaded, batch)
    assert torch.nn.functional.cosine_similarity(quantized, floating).min() > 0.99
    path = tmp_path / "model.onnx"
    with folded(loaded.model):
        export_onnx(loaded.module(), encode(loaded, 2), loaded.outputs, path)
    plain = onnxruntime.SessionOptions()  # node by node: fused INT8 products saturate on a CPU without VNNI
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, plain)
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
    np.testing.assert_allclose(found, quantized.numpy(), atol=0.02)
    loaded.model.save_pretrained(tmp_path / "saved")
    loaded.tokenizer.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(outputs(load_model(str(tmp_path / "saved")), batch), floating)


def test_absolute_positions_are_neither_read_nor_missed(relative: Callable[..., Path], encode: Encode) -> None:
    folder = relative("bert", "relative_key")
    expected = load_model(str(folder))
    assert isinstance(expected.model.get_submodule("bert.embeddings.position_embeddings"), NoPositions)
    weights = load_file(folder / "model.safetensors")
    del weights["bert.embeddings.position_embeddings.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    batch = encode(expected)
    torch.testing.assert_close(outputs(load_model(str(folder)), batch), outputs(expected, batch))


def test_one_class_per_class() -> None:
    from transformers import BertModel

    assert relative_class(BertModel) is relative_class(BertModel)
    assert relative_class(BertModel).__name__ == "BertModel"  # what config.json then says
