"""Width pruning: masks that act, importance, rewiring, elastic widths, and real smaller models that load anywhere."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import onnx
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from export.check import check_file
from export.to_onnx import export_onnx
from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrate import calibrate
from qdq.compress.elastic import extract, make_elastic, size_at
from qdq.compress.importance import Importance, masked_heads, measure_importance, rewire
from qdq.compress.loss import TaskLoss
from qdq.compress.onnx_file import OnnxModule
from qdq.errors import ConfigError, ModelError
from qdq.inject import QuantSpec, inject
from qdq.inject.quantizer import folded
from qdq.inject.widths import blocks
from qdq.loading.model import LoadedModel, load_model
from qdq.loading.pruned import PRUNABLE, pruned_config

Load = Callable[..., LoadedModel]
Encode = Callable[..., dict[str, torch.Tensor]]
HEADS = {"num_attention_heads": 4}


def tiny(load_tiny: Load, model_type: str = "bert", task: str = "text-classification") -> LoadedModel:
    return load_tiny(model_type, task, **({"n_heads": 4} if model_type == "distilbert" else HEADS))


@pytest.mark.parametrize("model_type", sorted(PRUNABLE))
def test_a_zero_head_mask_changes_the_output_and_receives_a_gradient(
    model_type: str, load_tiny: Load, encode: Encode
) -> None:
    loaded = tiny(load_tiny, model_type)
    model, inputs = loaded.model, encode(loaded)
    plain = model(**inputs).logits
    mask = torch.ones(len(blocks(model)), 4, requires_grad=True)
    with masked_heads(model, mask):
        same = model(**inputs).logits
    assert torch.allclose(same, plain, atol=1e-5)  # our attention against torch's fused one
    zero = mask.detach().clone()
    zero[0, 1] = 0
    zero.requires_grad_()
    with masked_heads(model, zero):
        other = model(**inputs).logits
    assert (other - plain).abs().max() > 1e-3
    other.square().sum().backward()  # type: ignore[no-untyped-call]
    assert zero.grad is not None
    assert (zero.grad.abs() > 0).all()
    assert torch.allclose(model(**inputs).logits, plain, atol=1e-6)  # nothing is left behind


def test_importance_of_a_head_is_the_derivative_of_the_loss(load_tiny: Load, encode: Encode) -> None:
    loaded = tiny(load_tiny)
    model, batch = loaded.model.double(), {**encode(loaded), "labels": torch.tensor([0, 1] * 6)}
    found = measure_importance(model, [batch], TaskLoss())
    step, changed = 1e-4, []
    for sign in (1, -1):
        mask = torch.ones(2, 4, dtype=torch.float64)
        mask[1, 2] += sign * step
        with masked_heads(model, mask), torch.no_grad():
            changed.append(float(TaskLoss()(model, batch)))
    assert float(found.heads[1][2]) == pytest.approx(abs(changed[0] - changed[1]) / (2 * step), rel=1e-3)


def test_rewiring_keeps_the_function_and_sorts(load_tiny: Load, encode: Encode) -> None:
    loaded = tiny(load_tiny)
    model, inputs = loaded.model, encode(loaded)
    before = model(**inputs).logits
    generator = torch.Generator().manual_seed(3)
    importance = Importance(
        torch.rand(2, 4, generator=generator),
        torch.rand(2, 64, generator=generator),
    )
    first = blocks(model)[0].linear("query").weight.detach().clone().view(4, 8, -1)
    rewire(model, importance)
    assert torch.allclose(model(**inputs).logits, before, atol=1e-5)
    order = torch.argsort(importance.heads[0], descending=True)
    assert torch.equal(blocks(model)[0].linear("query").weight.view(4, 8, -1), first[order])


@pytest.mark.parametrize("model_type", sorted(PRUNABLE))
def test_a_pruned_checkpoint_loads_and_computes_the_same(
    model_type: str, load_tiny: Load, encode: Encode, tmp_path: Path
) -> None:
    loaded = tiny(load_tiny, model_type)
    model, inputs = loaded.model, encode(loaded)
    size = size_at(model, Fraction(3, 4))
    assert (size.heads, size.neurons) == (3, 48)
    switch = make_elastic(model)
    switch.size = size
    with torch.no_grad():
        inside = model(**inputs).logits
    made = extract(model, size)
    made.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    again.train(False)
    with torch.no_grad():
        assert torch.allclose(again(**inputs).logits, inside, atol=1e-5)
    assert blocks(again)[0].linear("query").weight.shape == (24, 32)
    assert load_model(str(tmp_path)).task.name == "text-classification"


def test_twelve_heads_at_two_thirds(load_tiny: Load) -> None:
    model = load_tiny(num_attention_heads=8).model
    assert size_at(model, Fraction("0.375")).heads == 3
    with pytest.raises(ConfigError, match=r"2/3 of 8 heads is no whole number .* 1/8, 1/4, 3/8"):
        size_at(model, Fraction(2, 3))
    with pytest.raises(ConfigError, match="less than one head"):
        size_at(model, Fraction(1, 16))


def test_mpnet_is_declined_by_name(load_tiny: Load) -> None:
    with pytest.raises(ModelError, match="mpnet: its width cannot be pruned"):
        blocks(load_tiny("mpnet").model)


@pytest.mark.parametrize(
    "imports",
    [
        "import qdq.compress; from transformers import AutoModelForSequenceClassification",
        "from transformers import AutoModelForSequenceClassification; import qdq.loading.model",
    ],
    ids=["qdq-first", "transformers-first"],
)
def test_auto_classes_know_pruned_models(imports: str, load_tiny: Load, tmp_path: Path) -> None:
    model = tiny(load_tiny).model
    extract(model, size_at(model, Fraction(1, 2))).save_pretrained(tmp_path)
    code = (
        f"{imports}; import pickle;"
        f"model = AutoModelForSequenceClassification.from_pretrained({str(tmp_path)!r});"
        "print(type(pickle.loads(pickle.dumps(model))).__name__)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "PrunedBertForSequenceClassification"


def test_import_qdq_changes_nothing() -> None:
    code = "import sys; before = list(sys.meta_path); import qdq; assert sys.meta_path == before; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"transformers", "torch", "qdq.loading"} & set(ran.stdout.split())


@pytest.mark.parametrize("model_type", sorted(PRUNABLE))
def test_a_pruned_config_is_copied_and_pickled(model_type: str, load_tiny: Load) -> None:
    config = pruned_config(tiny(load_tiny, model_type).model.config, heads=2, head_size=8, neurons=32)
    for same in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), AutoConfig.for_model(**config.to_dict())):
        assert type(same) is type(config)
        assert same.to_dict() == config.to_dict()


def test_a_pruned_model_is_quantized_and_exported_like_any_other(
    load_tiny: Load, encode: Encode, tmp_path: Path
) -> None:
    source = load_tiny("bert", **HEADS, num_hidden_layers=1)
    extract(source.model, size_at(source.model, Fraction(3, 4))).save_pretrained(tmp_path / "pruned")
    source.tokenizer.save_pretrained(tmp_path / "pruned")
    loaded = load_model(str(tmp_path / "pruned"))
    inputs = encode(loaded)
    spec = QuantSpec()
    placement = inject(loaded.model, spec)
    calibrate(loaded.module(), [inputs], spec, algorithm_named("max"))
    path = tmp_path / "model.qdq.onnx"
    with folded(loaded.model):
        export_onnx(loaded.module(), encode(loaded, 2), loaded.outputs, path)
    check_file(path, [point.name for point in placement.placed])
    with torch.no_grad():
        (expected,) = loaded.module()(**inputs)
    assert torch.allclose(OnnxModule(onnx.load(path))(**inputs)["logits"], expected, atol=0.05)
