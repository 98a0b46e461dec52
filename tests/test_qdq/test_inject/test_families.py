"""Every supported family on a small random checkpoint: same outputs, no point missing, calibrated, exported."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MPNetPreTrainedModel

from export.names import in_encoder
from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrate import calibrate
from qdq.calibrate.checkpoint import load_checkpoint
from qdq.errors import ModelError
from qdq.inject import inject, quantizers
from qdq.inject.families import FAMILIES, family_of
from qdq.inject.scale import scale_of
from qdq.inject.spec import PLACEMENTS, named_spec
from qdq.loading.kinds import TASKS
from qdq.loading.model import LoadedModel

LoadTiny = Callable[..., LoadedModel]
Encode = Callable[..., dict[str, torch.Tensor]]

# model_type -> what else its checkpoint has; ERNIE's task types are zeros unless given
EXTRA: dict[str, dict[str, Any]] = {"ernie": {"use_task_id": True}}
SHARED = ("albert",)  # one layer's points serve every depth
every_family = pytest.mark.parametrize("model_type", FAMILIES)


def outputs(loaded: LoadedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = loaded.module()(**batch)[0]
    return output


def test_there_are_nine_families() -> None:
    assert len(FAMILIES) == 9


@every_family
@pytest.mark.parametrize("task", ["text-classification", "fill-mask"])
def test_injection_with_quantizers_disabled_changes_nothing(
    model_type: str, task: str, load_tiny: LoadTiny, encode: Encode
) -> None:
    extra = EXTRA.get(model_type, {})
    original = load_tiny(model_type, task, **extra)
    batch = encode(original)
    assert int(batch["attention_mask"].min()) == 0  # padded
    expected = {}
    for attention in ("eager",) if model_type == "mpnet" else ("eager", "sdpa"):
        original.model.set_attn_implementation(attention)
        expected[attention] = outputs(original, batch)
    tokens = batch["attention_mask"].bool() if task == "fill-mask" else slice(None)
    for name in PLACEMENTS:
        loaded = load_tiny(model_type, task, **extra)
        inject(loaded.model, named_spec(name))
        for point in quantizers(loaded.model).values():
            point.disable_quant()
        actual = outputs(loaded, batch)
        for reference in expected.values():
            # float32 rounding of 1/sqrt(d) folded into the query; padded rows see other padding and may differ
            torch.testing.assert_close(actual[tokens], reference[tokens], rtol=0, atol=1e-5)


@every_family
def test_each_layer_has_its_twenty_points(model_type: str, load_tiny: LoadTiny) -> None:
    loaded = load_tiny(model_type)
    placement = inject(loaded.model, named_spec("qdqbert"))
    layers = 1 if model_type in SHARED else 2
    counts = {kind: placed for kind, (placed, _) in placement.counts().items()}
    assert counts == {
        "linear_input": 6 * layers,
        "linear_weight": 6 * layers,
        "matmul": 4 * layers,
        "residual": 4 * layers,
        "embedding": 0,
    }
    assert sum(counts.values()) == 20 * layers
    assert set(quantizers(loaded.model)) == {point.name for point in placement.placed}


def softmaxes(loaded: LoadedModel, encode: Encode) -> int:
    """Number of softmax operations of a forward pass with eager attention: one per attention block passed."""
    if not isinstance(loaded.model, MPNetPreTrainedModel):  # which knows no other attention
        loaded.model.set_attn_implementation("eager")

    class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
        found: int = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.found += function is torch.ops.aten._softmax.default
            return function(*args, **(kwargs or {}))

    counter = Counter()  # type: ignore[no-untyped-call]
    with counter:
        outputs(loaded, encode(loaded, 4))
    found: int = counter.found
    return found


@every_family
@pytest.mark.parametrize("task", ["text-classification", "fill-mask", "multiple-choice"])
def test_no_linear_residual_add_or_attention_is_missing(
    model_type: str, task: str, load_tiny: LoadTiny, encode: Encode
) -> None:
    original = load_tiny(model_type, task).model
    layers = 1 if model_type in SHARED else 2
    linears = [path for path, module in original.named_modules() if isinstance(module, nn.Linear)]
    norms = [path for path, module in original.named_modules() if isinstance(module, nn.LayerNorm)]
    in_layers = re.compile(r"\.(layer|albert_layers)\.\d+\.")
    adds = [path for path in norms if in_layers.search(path)]  # post-norm: every norm in a layer follows one add
    assert len(adds) == 2 * layers
    assert softmaxes(load_tiny(model_type, task), encode) == 2  # depth; ALBERT runs its one layer twice
    loaded = load_tiny(model_type, task)
    placement = inject(loaded.model, named_spec("linear"))
    assert all(point.reason for point in placement.points)
    named = [point.name for point in placement.points]
    assert len(set(named)) == len(named)
    for path in linears:
        assert f"{path}.input_quantizer" in named
        assert f"{path}.weight_quantizer" in named
    kinds = [point.kind for point in placement.points]
    assert kinds.count("residual") == 2 * len(adds)
    assert kinds.count("matmul") == 4 * layers
    placed = {point.name for point in placement.placed}
    for path in linears:
        assert (f"{path}.input_quantizer" in placed) == bool(in_layers.search(path))


@pytest.mark.document_row("000/15")
@every_family
def test_calibrated_outputs_are_finite_and_near(model_type: str, load_tiny: LoadTiny, encode: Encode) -> None:
    loaded = load_tiny(model_type, "feature-extraction", **EXTRA.get(model_type, {}))
    batch = encode(loaded, 24)
    expected = outputs(loaded, batch)[batch["attention_mask"].bool()]
    spec = named_spec("qdqbert")
    inject(loaded.model, spec)
    table = calibrate(loaded.module(), [batch], spec, algorithm_named("max"))
    assert set(table.activations) | set(table.weights) == set(quantizers(loaded.model))
    actual = outputs(loaded, batch)[batch["attention_mask"].bool()]
    assert bool(actual.isfinite().all())
    assert not torch.equal(actual, expected)
    # two random layers with 8-bit operands everywhere: measured 0.9997 and 0.9998 over the families
    assert float(nn.functional.cosine_similarity(actual, expected, dim=-1).mean()) > 0.999


@pytest.mark.parametrize("model_type", ["deberta-v2", "gpt2", "t5", ""])
def test_another_family_is_refused_by_name_with_the_list(model_type: str) -> None:
    with pytest.raises(ModelError) as caught:
        family_of(model_type)
    assert f"'{model_type}' is not supported" in str(caught.value)
    assert all(name in str(caught.value) for name in FAMILIES)


# --- export ---------------------------------------------------------------------------------------------------------


def distinct_points(loaded: LoadedModel, batch: dict[str, torch.Tensor]) -> int:
    """Number of different (tensor, scale) pairs the activation points see in one forward pass."""
    seen: set[tuple[int, bytes]] = set()
    kept = []  # a freed tensor's address would be used again

    def note(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        kept.append(arguments[0])
        scale = scale_of(module.amax, 8).numpy().tobytes()
        seen.add((arguments[0].data_ptr(), scale))

    points = [point for point in quantizers(loaded.model).values() if point.layout != "weight"]
    handles = [point.register_forward_pre_hook(note) for point in points]
    outputs(loaded, batch)
    for handle in handles:
        handle.remove()
    return len(seen)


def dequantized(producers: dict[str, onnx.NodeProto], tensor: str) -> bool:
    """Whether a tensor comes out of a DequantizeLinear, perhaps transposed or reshaped."""
    node = producers.get(tensor)
    while node is not None and node.op_type in ("Transpose", "Reshape"):
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def check_coverage(graph: onnx.GraphProto) -> None:
    """Both operands of every encoder matmul and of every add in front of a LayerNormalization are dequantized."""
    producers = {name: node for node in graph.node for name in node.output}
    norms = [node for node in graph.node if node.op_type == "LayerNormalization" and in_encoder(node.name)]
    targets = [producers[norm.input[0]] for norm in norms]
    assert [node.op_type for node in targets] == ["Add"] * len(targets)
    matmuls = [node for node in graph.node if node.op_type in ("MatMul", "Gemm") and in_encoder(node.name)]
    assert len(matmuls) == 8 * (len(norms) // 2)
    for node in targets + matmuls:
        assert all(dequantized(producers, name) for name in node.input[:2]), node.name


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


# Every family and every task: (model_type, task)
COMPILED = (
    ("bert", "multiple-choice"),
    ("bert", "language-modeling"),
    ("roberta", "fill-mask"),
    ("xlm-roberta", "question-answering"),
    ("camembert", "token-classification"),
    ("electra", "text-classification"),
    ("ernie", "next-sentence-prediction"),
    ("bert", "information-extraction"),
    ("distilbert", "question-answering"),
    ("albert", "feature-extraction"),
    ("mpnet", "feature-extraction"),
)
LABELLED = ("multiple-choice", "text-classification", "next-sentence-prediction")


def test_every_family_and_task_is_compiled() -> None:
    assert {model_type for model_type, _ in COMPILED} == set(FAMILIES)
    assert {task for _, task in COMPILED} == set(TASKS)


def compiled_outcome(arguments: tuple[Any, ...], qdq: Callable[..., Any], task: str) -> None:
    """Compile, and check what it reports of a family's engine."""
    ran = qdq("compile", *arguments, "--target", "openvino", "--placement", "qdqbert", "--no-smoothing", "--json")
    assert ran.code == 0, ran.err
    outcome = json.loads(ran.out)
    running, total = outcome["build"]["int8"]["encoder_linear"]
    assert running == total >= 6
    assert outcome["accuracy"]["task"] == task
    assert outcome["accuracy"]["cosine_mean"] > 0.98
    assert (outcome["accuracy"]["metric"] is not None) == (task in LABELLED)
    assert task in LABELLED or outcome["accuracy"]["metric_reason"]
    assert outcome["benchmark"]["contestants"]["int8"]["samples"] >= 3


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "task"), COMPILED)
def test_the_exported_graph_computes_what_the_module_computes(
    model_type: str,
    task: str,
    tiny_checkpoint: Callable[..., Path],
    jsonl_file: Path,
    encode: Encode,
    qdq: Callable[..., Any],
    small: tuple[str, ...],
    tmp_path: Path,
) -> None:
    layers = 2 if model_type in SHARED else 1
    names = {"distilbert": "n_layers"}
    config = {names.get(model_type, "num_hidden_layers"): layers, **EXTRA.get(model_type, {})}
    source = ("--model", tiny_checkpoint(model_type, task, **config), "--calibration", jsonl_file, *small)
    compiled_outcome((*source, "--out", tmp_path), qdq, task)

    loaded, _, _ = load_checkpoint(tmp_path / "checkpoint")
    batch = encode(loaded, 24)
    model = onnx.load(tmp_path / "model.qdq.onnx")
    onnx.checker.check_model(model, full_check=True)
    check_coverage(model.graph)
    ops = [node.op_type for node in model.graph.node]
    inner = [node.op_type for node in model.graph.node if in_encoder(node.name)]
    assert len({node.name for node in model.graph.node}) == len(ops)
    assert ops.count("QuantizeLinear") == distinct_points(loaded, batch)
    assert inner.count("LayerNormalization") == 2 * layers
    assert inner.count("Gelu") == layers
    assert not {"Erf", "Pow", "ReduceMean", "Sqrt", "GatherND"} & set(inner)
    codes = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8 and tensor.dims]
    assert len([tensor for tensor in codes if len(tensor.dims) == 2]) == 6  # ALBERT's layers read the same six

    engine = session(tmp_path / "model.qdq.onnx")
    for count, length in ((1, 5), (3, 1), (24, batch["input_ids"].shape[-1])):
        part = {name: x[:count, ..., :length] for name, x in batch.items()}
        found = engine.run(None, {name: x.numpy() for name, x in part.items()})
        with torch.no_grad():
            expected = [output.numpy() for output in loaded.module()(**part)]
        assert len(found) == len(expected) == len(loaded.outputs)
        for one, other in zip(found, expected, strict=True):
            # The same arithmetic in another summation order: a code on a rounding edge may fall to the other side.
            assert np.mean(np.abs(one - other) < 1e-4) > 0.99
            assert np.abs(one - other).max() < 0.1
