"""INT8 embedding tables: per-row scales from the rows alone, the same values in torch and in every lowered graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from export.passes import lower
from export.to_onnx import export_onnx
from export.unoptimized import open_unoptimized, run
from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrate import calibrate
from qdq.calibrate.checkpoint import load_checkpoint, write_checkpoint
from qdq.inject import QuantSpec, inject, quantizers
from qdq.inject.quantizer import folded
from qdq.inject.spec import named_spec
from qdq.loading.model import LoadedModel

TABLES = named_spec("linear", linear=False, embedding_tables=True)
LoadTiny = Callable[..., LoadedModel]


def with_tables(load_tiny: LoadTiny, *arguments: str, spec: QuantSpec = TABLES) -> LoadedModel:
    """A tiny model whose tables alone are quantized: calibrated without any data."""
    loaded = load_tiny(*arguments)
    inject(loaded.model, spec)
    calibrate(loaded.module(), [], spec, algorithm_named("percentile"))
    return loaded


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "albert", "electra", "mpnet"])
def test_tables_are_candidates_in_every_family_and_float_by_default(model_type: str, load_tiny: LoadTiny) -> None:
    points = [p for p in inject(load_tiny(model_type).model, QuantSpec()).points if p.kind == "embedding"]
    assert len(points) >= 2
    assert not any(point.placed for point in points)
    placed = inject(load_tiny(model_type).model, TABLES).placed
    assert [point.name for point in placed] == [point.name for point in points]


def test_rows_are_rounded_to_their_own_scale(load_tiny: LoadTiny) -> None:
    plain, loaded = load_tiny(), with_tables(load_tiny)
    ids = torch.arange(plain.model.config.vocab_size).reshape(2, -1)
    rows = plain.model.get_input_embeddings()(ids)
    with torch.no_grad():
        looked_up = loaded.model.get_input_embeddings()(ids)
        whole = quantizers(loaded.model)["bert.embeddings.word_embeddings.weight_quantizer"](rows.flatten(0, 1))
    assert torch.equal(looked_up, whole.reshape(rows.shape))  # looking rows up first changes no bit
    step = rows.abs().amax(-1, keepdim=True) / 127
    assert bool(((looked_up - rows).abs() <= 0.501 * step).all())  # half a step, and the scale's rounding to FP16
    assert not torch.equal(looked_up, rows)


def test_only_rows_that_were_read_get_a_gradient(load_tiny: LoadTiny) -> None:
    table = with_tables(load_tiny).model.get_input_embeddings()
    table(torch.tensor([[5, 7]])).sum().backward()
    gradient = table.weight.grad
    assert gradient is not None
    assert sorted(gradient.abs().sum(1).nonzero().flatten().tolist()) == [5, 7]


@dataclass(frozen=True)
class Exported:
    """A one-layer model with quantized tables, what it is fed, and its canonical graph."""

    loaded: LoadedModel
    feeds: dict[str, torch.Tensor]
    graph: Path


@pytest.fixture(scope="module")
def exported(load_tiny: LoadTiny, encode: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """9000 rows: the exporter itself folds only small tensors, and scales must stay constants."""
    loaded = load_tiny("bert", "token-classification", vocab_size=9000, num_hidden_layers=1)
    inject(loaded.model, TABLES)
    calibrate(loaded.module(), [], TABLES, algorithm_named("percentile"))
    feeds, path = encode(loaded), tmp_path_factory.mktemp("tables") / "model.qdq.onnx"
    with folded(loaded.model):
        export_onnx(loaded.module(), feeds, loaded.outputs, path)
    return Exported(loaded, feeds, path)


@pytest.mark.parametrize("target", ["openvino", "onnxruntime", "tensorrt"])
def test_every_target_computes_the_module(target: str, exported: Exported, tmp_path: Path) -> None:
    lower(exported.graph, target, tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    tables = {t.name: t.data_type for t in model.graph.initializer if "embeddings." in t.name and len(t.dims) == 2}
    if target == "tensorrt":
        assert onnx.TensorProto.INT8 not in tables.values()
        return
    assert sum(kind == onnx.TensorProto.INT8 for kind in tables.values()) == 3
    assert (tmp_path / "model.onnx").stat().st_size < 9000 * 32 * 4  # not even the float table would fit
    gathers = [node for node in model.graph.node if node.op_type == "Gather" and node.name.endswith(".codes")]
    assert len(gathers) == 3  # the table is not dequantized as a whole
    arrays = {name: tensor.numpy() for name, tensor in exported.feeds.items()}
    (result,) = run(open_unoptimized(model.SerializeToString(), tmp_path), arrays, ["logits"])
    with torch.no_grad():
        (expected,) = exported.loaded.module()(**exported.feeds)
    real = arrays["attention_mask"].astype(bool)
    np.testing.assert_allclose(result[real], expected.numpy()[real], atol=2e-5)  # float32 sums in another order
    assert not result[~real].any()  # nothing is computed where a text is padded


def test_a_checkpoint_keeps_the_tables(load_tiny: LoadTiny, encode: Callable[..., Any], tmp_path: Path) -> None:
    loaded = load_tiny()
    inject(loaded.model, TABLES)
    table = calibrate(loaded.module(), [], TABLES, algorithm_named("percentile"))
    write_checkpoint(loaded, TABLES, table, tmp_path / "checkpoint")
    again, spec, _ = load_checkpoint(tmp_path / "checkpoint")
    assert spec == TABLES
    feeds = encode(loaded)
    with torch.no_grad():
        assert torch.equal(loaded.module()(**feeds)[0], again.module()(**feeds)[0])


def test_the_option_adds_tables_to_any_placement_and_to_a_finished_checkpoint(
    workplace: Path, qdq: Callable[..., Any], small: tuple[str, ...]
) -> None:
    """A checkpoint of ours keeps its own amax; the tables, which need no data, are added to it."""
    before = json.loads((workplace / "work/calibration.json").read_text())["activations"]
    source = ("--model", "work/checkpoint", "--eval-data", "text.jsonl", "--out", "tables", "--target", "openvino")
    ran = qdq("calibrate", *source, "--embedding-tables", *small)
    assert ran.code == 0, ran.err
    assert json.loads((workplace / "tables/calibration.json").read_text())["activations"] == before
    kinds = [p["kind"] for p in json.loads((workplace / "tables/placement.json").read_text())["points"] if p["placed"]]
    assert kinds.count("embedding") == 3
