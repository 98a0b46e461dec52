"""Importing QDQBERT checkpoints: their names and shapes, the query's 1/sqrt(d), and folders that say "qdqbert"."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qdq.base.artifacts import sha256_tree
from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrate import calibrate, summarise
from qdq.calibrate.checkpoint import import_qdqbert, load_checkpoint, read_amax, write_checkpoint
from qdq.errors import CalibrationError, ModelError
from qdq.inject import inject, quantizers
from qdq.inject.spec import QuantSpec, named_spec
from qdq.loading.model import LoadedModel, load_model

Checkpoint = Callable[..., Path]

LINEARS = (
    *(f"attention.self.{name}" for name in ("query", "key", "value")),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
)
OPERANDS = tuple(f"attention.self.matmul_{operand}_input_quantizer" for operand in "qkva") + tuple(
    f"{block}.add_{operand}_input_quantizer"
    for block in ("attention.output", "output")
    for operand in ("local", "residual")
)
HEAD_SIZE = 16


def qdqbert_amax(state: dict[str, Tensor], prefix: str = "bert.") -> dict[str, Tensor]:
    """The 20 amax per layer as QDQBERT stores them: [out, 1] per weight, scalars (some as [1]) elsewhere.

    Activation amax are made up: any positive number is a valid one.
    """
    amax: dict[str, Tensor] = {}
    for layer in (0, 1):
        path = f"{prefix}encoder.layer.{layer}."
        for number, linear in enumerate(LINEARS):
            weight = state[f"{path}{linear}.weight"]
            amax[f"{path}{linear}._weight_quantizer._amax"] = weight.abs().amax(dim=1, keepdim=True)
            amax[f"{path}{linear}._input_quantizer._amax"] = torch.tensor(1.0 + number + layer)
        for number, operand in enumerate(OPERANDS):
            amax[f"{path}{operand}._amax"] = torch.tensor([2.0 + number + layer])
    assert len(amax) == 2 * 20
    return amax


def loaded_bert(folder: Path, spec: QuantSpec, task: str | None = None) -> LoadedModel:
    loaded = load_model(str(folder), task)
    inject(loaded.model, spec)
    return loaded


def stored(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture
def qdqbert_folder(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A folder as QDQBertForSequenceClassification.save_pretrained leaves it."""
    folder = Path(shutil.copytree(tiny_checkpoint("bert"), tmp_path / "qdqbert"))
    state = stored(folder)
    save_file({**state, **qdqbert_amax(state)}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "qdqbert", "architectures": ["QDQBertForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def batch() -> dict[str, Tensor]:
    ids = torch.arange(5, 65).reshape(4, 15)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


# The state dict


@pytest.mark.parametrize(
    ("theirs", "task"), [("bert.", "text-classification"), ("", "text-classification"), ("bert.", "feature-extraction")]
)
def test_every_amax_finds_its_point_with_and_without_prefix(
    tiny_checkpoint: Checkpoint, theirs: str, task: str
) -> None:
    folder = tiny_checkpoint("bert")
    state = qdqbert_amax(stored(folder))
    state = {key.replace("bert.", theirs, 1): value for key, value in state.items()}
    loaded = loaded_bert(folder, named_spec("qdqbert"), task)
    imported, unmatched = import_qdqbert(loaded.model, state)
    assert unmatched == []
    assert set(imported) == set(quantizers(loaded.model))
    assert len(imported) == 40
    summarise(loaded.model, "imported", None, 0, 0)


def test_only_what_sees_scaled_queries_is_rescaled(tiny_checkpoint: Checkpoint) -> None:
    state = qdqbert_amax(stored(tiny_checkpoint("bert")))
    loaded = loaded_bert(tiny_checkpoint("bert"), named_spec("qdqbert"))
    import_qdqbert(loaded.model, state)
    factors = {}
    for name, point in quantizers(loaded.model).items():
        path = name.replace(".input_quantizer", "._input_quantizer").replace(".weight_quantizer", "._weight_quantizer")
        theirs = state[f"{path}._amax"]
        assert point.amax.shape == (theirs.shape if theirs.dim() == 2 else ())
        factors[name.partition("layer.")[2][2:]] = float((point.amax.reshape(-1) / theirs.reshape(-1)).mean())
    scaled = {name for name, factor in factors.items() if factor != 1}
    assert scaled == {"attention.self.matmul_q_input_quantizer", "attention.self.query.weight_quantizer"}
    assert {factors[name] for name in scaled} == {1 / math.sqrt(HEAD_SIZE)}


def test_the_rescaled_amax_is_what_our_own_calibration_finds(
    tiny_checkpoint: Checkpoint, batch: dict[str, Tensor]
) -> None:
    """QDQBERT's amax of matmul_q, taken by a hook on the unscaled query projection of the plain model."""
    folder, spec = tiny_checkpoint("bert"), named_spec("qdqbert")
    ours = loaded_bert(folder, spec)
    calibrate(ours.module(), [batch], spec, algorithm_named("max"))
    plain, seen = load_model(str(folder)), list[Tensor]()
    path = "bert.encoder.layer.1.attention.self"
    plain.model.get_submodule(f"{path}.query").register_forward_hook(lambda module, args, out: seen.append(out.abs()))
    with torch.no_grad():
        plain.module()(**batch)
    state = qdqbert_amax(stored(folder)) | {f"{path}.matmul_q_input_quantizer._amax": seen[0].amax().reshape(1)}
    imported = loaded_bert(folder, spec)
    import_qdqbert(imported.model, state)
    for point in (f"{path}.matmul_q_input_quantizer", f"{path}.query.weight_quantizer"):
        expected, found = (quantizers(loaded.model)[point].amax for loaded in (ours, imported))
        assert torch.allclose(expected, found, rtol=1e-6)


def test_keys_without_a_placed_point_are_reported(tiny_checkpoint: Checkpoint) -> None:
    state = qdqbert_amax(stored(tiny_checkpoint("bert"))) | {"bert.pooler.dense._input_quantizer._amax": torch.ones(())}
    loaded = loaded_bert(tiny_checkpoint("bert"), named_spec("linear+qk"))
    imported, unmatched = import_qdqbert(loaded.model, state | {"bert.pooler.dense.weight": torch.ones(2)})
    assert len(imported) == 2 * (12 + 2)
    declined = [*OPERANDS[2:]]  # v, a and the residuals
    assert set(unmatched) == {
        *(f"bert.encoder.layer.{layer}.{name}._amax" for layer in (0, 1) for name in declined),
        "bert.pooler.dense._input_quantizer._amax",
    }


@pytest.mark.parametrize(
    ("theirs", "per_channel", "message"),
    [
        (torch.ones(()), True, "holds 1 values and the point has 32; set per_channel_weights in the quant spec"),
        (torch.ones(32, 1), False, "holds 32 values and the point has 1; set per_channel_weights"),
        (torch.ones(31, 1), True, "holds 31 values and the point has 32"),
    ],
)
def test_weights_quantized_another_way_are_refused(
    tiny_checkpoint: Checkpoint, theirs: Tensor, per_channel: bool, message: str
) -> None:
    key = "bert.encoder.layer.0.output.dense._weight_quantizer._amax"
    loaded = loaded_bert(tiny_checkpoint("bert"), named_spec("qdqbert", per_channel_weights=per_channel))
    with pytest.raises(ModelError, match=message):
        import_qdqbert(loaded.model, {key: theirs})


def test_a_point_the_state_dict_lacks_is_named(tiny_checkpoint: Checkpoint) -> None:
    """A NaN amax is what a QDQBERT calibration without data leaves; a missing one shows when the table is made."""
    state = qdqbert_amax(stored(tiny_checkpoint("bert")))
    key = "bert.encoder.layer.1.intermediate.dense._input_quantizer._amax"
    loaded = loaded_bert(tiny_checkpoint("bert"), named_spec("qdqbert"))
    import_qdqbert(loaded.model, {name: value for name, value in state.items() if name != key})
    with pytest.raises(CalibrationError, match=r"layer\.1\.intermediate\.dense\.input_quantizer: has no amax"):
        summarise(loaded.model, "imported", None, 0, 0)
    with pytest.raises(CalibrationError, match=r"intermediate\.dense\.input_quantizer: amax is not finite"):
        import_qdqbert(loaded.model, {key: torch.tensor(math.nan)})


# The folder


def test_a_qdqbert_folder_loads_as_bert_and_stays_as_it_is(
    qdqbert_folder: Path, tiny_checkpoint: Checkpoint, batch: dict[str, Tensor]
) -> None:
    before = sha256_tree(qdqbert_folder)
    theirs, plain = load_model(str(qdqbert_folder)), load_model(str(tiny_checkpoint("bert")))
    assert theirs.task.name == "text-classification"
    assert theirs.model.config.model_type == "bert"
    assert theirs.family == plain.family
    with torch.no_grad():
        assert torch.equal(theirs.module()(**batch)[0], plain.module()(**batch)[0])
    assert sha256_tree(qdqbert_folder) == before


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("QDQBertModel", "feature-extraction"),
        ("QDQBertForMaskedLM", "fill-mask"),
        ("QDQBertForMultipleChoice", "multiple-choice"),
        ("QDQBertForNextSentencePrediction", "next-sentence-prediction"),
        ("QDQBertForQuestionAnswering", "question-answering"),
        ("QDQBertForTokenClassification", "token-classification"),
        ("QDQBertLMHeadModel", "language-modeling"),
    ],
)
def test_every_qdqbert_class_is_recognised(
    tiny_checkpoint: Checkpoint, tmp_path: Path, architecture: str, task: str
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("bert", task), tmp_path / "qdqbert"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "qdqbert", "architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").unlink()  # the tokenizer class must not hang on a model type nobody knows
    assert load_model(str(folder)).task.name == task


@pytest.mark.document_row("003/2")
def test_from_a_qdqbert_folder_to_our_checkpoint(
    qdqbert_folder: Path, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    assert read_amax(qdqbert_folder)
    spec = named_spec("qdqbert")
    loaded = loaded_bert(qdqbert_folder, spec)
    _, unmatched = import_qdqbert(loaded.model, read_amax(qdqbert_folder))
    assert unmatched == []
    table = summarise(loaded.model, "imported", None, 0, 0)
    write_checkpoint(loaded, spec, table, tmp_path / "checkpoint")
    again, _, _ = load_checkpoint(tmp_path / "checkpoint")
    assert again.model.config.model_type == "bert"
    with torch.no_grad():
        assert torch.equal(loaded.module()(**batch)[0], again.module()(**batch)[0])


def test_pickled_qdqbert_weights_are_read_only_when_asked_for(qdqbert_folder: Path) -> None:
    state = stored(qdqbert_folder)
    (qdqbert_folder / "model.safetensors").unlink()
    torch.save(state, qdqbert_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="--allow-pickle"):
        read_amax(qdqbert_folder)
    assert len(read_amax(qdqbert_folder, allow_pickle=True)) == 40
    assert load_model(str(qdqbert_folder), allow_pickle=True).task.name == "text-classification"
    (qdqbert_folder / "pytorch_model.bin").write_bytes(b"garbage")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: cannot be read"):
        read_amax(qdqbert_folder, allow_pickle=True)
