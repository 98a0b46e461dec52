"""Every family's graph by recording is the graph by torch's own exporter: node by node, constant by constant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import export.record
from export.to_onnx import FloatGraph, export_onnx
from qdq.calibrate.calibrate import freeze_weights
from qdq.inject import QuantSpec, inject, quantizers
from qdq.inject.families import FAMILIES
from qdq.inject.quantizer import floating_parameters, folded
from qdq.loading.model import LoadedModel
from qdq.loading.pooling import Pooling
from qdq.pipeline.stages.export import export_example

LoadTiny = Callable[..., LoadedModel]


def one_layer(model_type: str) -> dict[str, int]:
    """Config of a model whose trace takes half as long; ALBERT calls its one layer twice."""
    return {} if model_type == "albert" else {"n_layers" if model_type == "distilbert" else "num_hidden_layers": 1}


def calibrated(loaded: LoadedModel, spec: QuantSpec) -> LoadedModel:
    """Injected, with a range of its own at every point: equal constants would be merged."""
    inject(loaded.model, spec)
    freeze_weights(loaded.model)
    for number, point in enumerate(quantizers(loaded.model).values()):
        if point.layout != "weight":
            point.set_amax(torch.tensor(1.0 + number / 7))
    return loaded


def graphs(loaded: LoadedModel, folder: Path) -> tuple[Path, Path, str]:
    """The canonical and the floating-point graph in `folder`, and why torch traced the module."""
    module, paths = loaded.module(), (folder / "qdq.onnx", folder / "fp32.onnx")
    plain = FloatGraph(paths[1], {name: tensor.numpy() for name, tensor in floating_parameters(module).items()})
    with folded(loaded.model):
        why = export_onnx(module, export_example(loaded), loaded.outputs, paths[0], floating=plain)
    return *paths, why


def structure(path: Path) -> Counter[Any]:
    """Every node as what it computes from the graph's inputs: operator, attributes, operands down to constants."""
    graph = onnx.load(path).graph
    known: dict[str, Any] = {value.name: value.name for value in graph.input}
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        known[tensor.name] = hash((str(array.dtype), array.shape, array.tobytes()))
    found: Counter[Any] = Counter()
    for node in graph.node:
        attributes = sorted((a.name, str(helper.get_attribute_value(a))) for a in node.attribute)
        computed = hash((node.op_type, tuple(known[name] for name in node.input), str(attributes)))
        known |= {name: hash((computed, place)) for place, name in enumerate(node.output)}
        found[node.op_type, computed] += 1
    found.update((value.name, known[value.name]) for value in graph.output)
    return found


def point_names(path: Path) -> set[str]:
    return {node.name for node in onnx.load(path).graph.node if node.op_type.endswith("Linear")}


def assert_same(loaded: LoadedModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to export give the same graphs, and the first one needs no trace."""
    *recorded, why = graphs(loaded, folder / "recorded")
    assert why == ""

    def refuse(*_: Any) -> None:
        raise export.record.Unrecorded("a test asks for torch's trace")

    monkeypatch.setattr(export.record, "record", refuse)
    *traced, why = graphs(loaded, folder / "traced")
    assert why == "a test asks for torch's trace"
    for mine, torchs in zip(recorded, traced, strict=True):
        assert structure(mine) == structure(torchs)
        assert point_names(mine) == point_names(torchs)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family(model_type: str, load_tiny: LoadTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same(calibrated(load_tiny(model_type, **one_layer(model_type)), QuantSpec()), tmp_path, monkeypatch)


@pytest.mark.parametrize("task", ["question-answering", "multiple-choice", "language-modeling"])
def test_tasks_with_inputs_or_heads_of_their_own(
    task: str, load_tiny: LoadTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = QuantSpec(placement="linear", matmul=("q", "k"), residual=(), embedding_tables=True)
    assert_same(calibrated(load_tiny("bert", task, **one_layer("bert")), spec), tmp_path, monkeypatch)


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_sentence_embeddings(mode: Any, load_tiny: LoadTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = replace(
        load_tiny("bert", "feature-extraction", **one_layer("bert")),
        pooling=Pooling(mode, True),
        outputs=("sentence_embedding",),
    )
    assert_same(calibrated(loaded, QuantSpec(placement="linear", matmul=(), residual=())), tmp_path, monkeypatch)
