"""Packed tokens give what all positions give, for every family and task, whatever the mask is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.onnxruntime import OnnxRuntimeRunner, OnnxRuntimeSettings
from engines.openvino import OpenVINORunner, OpenVINOSettings
from engines.openvino.build import open_core
from engines.openvino.packing import take_out_packing
from export.passes import LowerOptions, lower
from export.to_onnx import export_onnx
from export.unoptimized import open_unoptimized, run
from qdq.inject import QuantSpec, inject
from qdq.inject.families import FAMILIES
from qdq.loading.kinds import TASKS
from qdq.loading.model import load_model

CASES = {  # every family, every task
    "bert": "information-extraction",
    "ernie": "next-sentence-prediction",
    "roberta": "question-answering",
    "xlm-roberta": "fill-mask",
    "camembert": "language-modeling",
    "electra": "token-classification",
    "distilbert": "text-classification",
    "albert": "multiple-choice",
    "mpnet": "feature-extraction",
}
POOLINGS = ("cls_token", "mean_tokens", "max_tokens")
Graphs = tuple[Path, Path]  # without and with packing


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.int64]:
    """Masks [2·n, S]: empty texts, one token, holes, the first token missing, one long text and many short ones."""
    rows, columns = 2 * draw(st.integers(1, 3)), draw(st.integers(1, 18))
    ends = draw(st.lists(st.integers(0, columns), min_size=rows, max_size=rows))
    mask = (np.arange(columns) < np.array(ends)[:, None]).astype(np.int64)
    for row, column in draw(st.lists(st.tuples(st.integers(0, rows - 1), st.integers(0, columns - 1)), max_size=4)):
        mask[row, column] = 1 - mask[row, column]
    return mask


def test_every_family_and_task_is_a_case() -> None:
    assert set(CASES) | {"qdqbert"} >= set(FAMILIES)
    assert set(CASES.values()) == set(TASKS)


def graphs(checkpoint: Path, folder: Path, encode: Callable[..., Any]) -> Graphs:
    """The unquantized graph as it is lowered for OpenVINO, without packing and with it."""
    loaded = load_model(str(checkpoint))
    inject(loaded.model, QuantSpec(linear=False, matmul=(), residual=()))
    export_onnx(loaded.module(), encode(loaded, 4), list(loaded.outputs), folder / "float.onnx")
    for name, pack in (("plain", False), ("packed", True)):
        report = lower(folder / "float.onnx", "openvino", folder / name, options=LowerOptions(pack=pack))
    step = next(step for step in report["passes"] if step["pass"] == "pack_tokens")
    assert step["modified"] and not step["declined"]
    return folder / "plain" / "model.onnx", folder / "packed" / "model.onnx"


def feeds_of(path: Path, mask: NDArray[np.int64], seed: int) -> dict[str, NDArray[np.int64]]:
    """Random ids under a mask; what a graph [B, N, S] takes has N = 2."""
    random = np.random.default_rng(seed)
    inputs = onnx.load(path).graph.input
    made = {value.name: random.integers(5, 100, mask.shape) for value in inputs}
    made["input_ids"] = np.where(mask == 1, made["input_ids"], 1)
    made |= {"token_type_ids": random.integers(0, 2, mask.shape)} if "token_type_ids" in made else {}
    made["attention_mask"] = mask
    rank = len(inputs[0].type.tensor_type.shape.dim)
    return made if rank == 2 else {name: ids.reshape(-1, 2, ids.shape[-1]) for name, ids in made.items()}


def compare(
    expected: Mapping[str, NDArray[Any]], got: Mapping[str, NDArray[Any]], mask: NDArray[np.int64], by_token: bool
) -> None:
    for name, values in expected.items():
        wanted = values
        if by_token:
            behind = (1,) * (values.ndim - mask.ndim)
            wanted = np.where(mask.reshape(*mask.shape, *behind) == 1, values, 0)
        np.testing.assert_allclose(got[name], wanted, atol=2e-5, rtol=2e-5)


def check(pair: Graphs, by_token: bool) -> None:
    """Agree without optimizations for any mask, and in both runtimes for one of every kind."""
    names = [value.name for value in onnx.load(pair[0]).graph.output]
    sessions = [open_unoptimized(str(path), path.parent) for path in pair]

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(masks(), st.integers(0, 9))
    def unoptimized(mask: NDArray[np.int64], seed: int) -> None:
        feeds = feeds_of(pair[0], mask, seed)
        answers = [dict(zip(names, run(session, feeds, names), strict=True)) for session in sessions]
        compare(answers[0], answers[1], feeds["attention_mask"], by_token)

    unoptimized()
    lengths = np.array([[12], [3], [1], [0], [7], [2]])
    some = (np.arange(12) < lengths).astype(np.int64)
    some[4, 2], some[1, 0] = 0, 0
    shape = feeds_of(pair[0], some, 0)["attention_mask"].shape
    runners = (
        [OpenVINORunner(path, OpenVINOSettings(1)) for path in pair],
        [OpenVINORunner(path, OpenVINOSettings(2, shape=shape)) for path in pair],
        [OnnxRuntimeRunner(path, OnnxRuntimeSettings(1)) for path in pair],
    )
    for plain, packed in runners:
        for mask in (some, np.ones_like(some)):
            feeds = feeds_of(pair[0], mask, 0)
            compare(plain(feeds), packed(feeds), feeds["attention_mask"], by_token)


@pytest.mark.parametrize("model_type", CASES)
def test_packed_tokens_give_what_all_positions_give(
    model_type: str, tiny_checkpoint: Callable[..., Path], encode: Callable[..., Any], tmp_path: Path
) -> None:
    task = CASES[model_type]
    by_token = task in (
        "feature-extraction",
        "question-answering",
        "fill-mask",
        "language-modeling",
        "token-classification",
        "information-extraction",
    )
    check(graphs(tiny_checkpoint(model_type, task), tmp_path, encode), by_token)


@pytest.mark.parametrize("mode", POOLINGS)
def test_a_pooled_embedding_is_that_of_all_positions(
    mode: str, tiny_checkpoint: Callable[..., Path], encode: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint("bert", "feature-extraction"), folder)
    kinds = {"Transformer": "", "Pooling": "1_Pooling"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    check(graphs(folder, tmp_path, encode), by_token=False)


def test_inputs_keep_their_names_without_the_packing(
    tiny_checkpoint: Callable[..., Path], encode: Callable[..., Any], tmp_path: Path
) -> None:
    _, packed = graphs(tiny_checkpoint("bert", "text-classification"), tmp_path, encode)
    network = open_core().read_model(str(packed))
    names = [port.get_names() for port in network.inputs]
    network.reshape({next(iter(name)): [2, 8] for name in names})
    take_out_packing(network, (2, 8))
    assert [port.get_names() for port in network.inputs] == names
