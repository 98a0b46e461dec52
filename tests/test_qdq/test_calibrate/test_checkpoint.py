"""checkpoint/: what was calibrated comes back bit by bit, other tools read it as the FP32 model, damage is named."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from qdq.base.artifacts import sha256_tree, write_json
from qdq.calibrate import checkpoint
from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrate import calibrate
from qdq.calibrate.checkpoint import load_checkpoint, read_amax, read_spec, write_checkpoint
from qdq.calibrate.table import CalibrationTable
from qdq.errors import CalibrationError, DeployError, ModelError
from qdq.inject import inject, quantizers
from qdq.inject.spec import QuantSpec, named_spec
from qdq.loading.model import LoadedModel, load_model, quiet_transformers
from qdq.loading.source import QUANT_SPEC, is_checkpoint
from qdq.text.data import Record
from qdq.text.encode import encode_batch

Checkpoint = Callable[..., Path]
POOLING = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "word_embedding_dimension": 32}
KINDS = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
MODULES = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in KINDS.items()]


@pytest.fixture(scope="module")
def batch(tiny_checkpoint: Checkpoint, sentences: tuple[str, ...]) -> dict[str, Tensor]:
    tokenizer = load_model(str(tiny_checkpoint("bert"))).tokenizer
    return feed(tokenizer, sentences, ("input_ids", "attention_mask", "token_type_ids"))


def feed(tokenizer: Any, sentences: tuple[str, ...], inputs: tuple[str, ...]) -> dict[str, Tensor]:
    arrays = encode_batch(tokenizer, [Record(text) for text in sentences[:8]], inputs, 40, "longest")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def outputs(loaded: LoadedModel, batch: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return list(loaded.module()(**{name: batch[name] for name in loaded.inputs}))


def calibrated(source: Path, folder: Path, batch: dict[str, Tensor], spec: QuantSpec, **options: Any) -> LoadedModel:
    """Load, inject, calibrate and write."""
    loaded = load_model(str(source), **options)
    inject(loaded.model, spec)
    inputs = {name: batch[name] for name in loaded.inputs}
    table = calibrate(loaded.module(), [inputs], spec, algorithm_named("max"))
    write_checkpoint(loaded, spec, table, folder)
    return loaded


@pytest.fixture(scope="module")
def written(tiny_checkpoint: Checkpoint, batch: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated checkpoint of the tiny BERT; copy before changing it."""
    folder = tmp_path_factory.mktemp("written") / "checkpoint"
    calibrated(tiny_checkpoint("bert"), folder, batch, named_spec("qdqbert"))
    return folder


@pytest.fixture
def damaged(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(written, tmp_path / "checkpoint"))


# Round trip


@pytest.mark.parametrize(
    ("model_type", "task", "spec"),
    [
        ("bert", "text-classification", named_spec("qdqbert")),
        ("bert", "feature-extraction", named_spec("linear+qk")),
        ("roberta", "token-classification", named_spec("trt", clip_gelu=3.0)),
        ("distilbert", "question-answering", named_spec("ft1")),
        ("albert", "text-classification", named_spec("qdqbert", weight_bits=4)),
        ("mpnet", "fill-mask", named_spec("ft2", disable_layers=r"layer\.0\.")),
        ("electra", "text-classification", named_spec("qdqbert", embeddings=True, enable_layers="classifier")),
    ],
)
def test_round_trip(  # one row per way a checkpoint can differ
    tiny_checkpoint: Checkpoint, sentences: tuple[str, ...], tmp_path: Path, model_type: str, task: str, spec: QuantSpec
) -> None:
    source = tiny_checkpoint(model_type, task)
    plain = load_model(str(source), task)
    inputs = feed(plain.tokenizer, sentences, plain.inputs)
    loaded = calibrated(source, tmp_path / "checkpoint", inputs, spec, task=task)
    again, read, placement = load_checkpoint(tmp_path / "checkpoint")
    assert read == spec
    assert (again.task, again.inputs, again.outputs, again.labels, again.max_sequence) == (
        *(loaded.task, loaded.inputs, loaded.outputs, loaded.labels),
        loaded.max_sequence,
    )
    assert {point.name for point in placement.placed} == set(quantizers(loaded.model))
    for first, second in zip(outputs(loaded, inputs), outputs(again, inputs), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(outputs(plain, inputs)[0], outputs(again, inputs)[0])  # it does quantize


def test_the_same_work_gives_the_same_bytes(
    tiny_checkpoint: Checkpoint, written: Path, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    loaded = load_model(str(tiny_checkpoint("bert")))
    loaded.tokenizer(
        ["the cat"], truncation=True, max_length=5, padding="max_length"
    )  # which tokenizer.json would keep
    spec = named_spec("qdqbert")
    inject(loaded.model, spec)
    table = calibrate(loaded.module(), [batch], spec, algorithm_named("max"))
    write_checkpoint(loaded, spec, table, tmp_path / "checkpoint")
    assert sha256_tree(tmp_path / "checkpoint") == sha256_tree(written)


def test_writing_it_again_after_loading_changes_nothing(
    written: Path, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    calibrated(written, tmp_path / "again", batch, named_spec("qdqbert"))
    assert sha256_tree(tmp_path / "again") == sha256_tree(written)


def test_plain_transformers_reads_the_fp32_model(
    tiny_checkpoint: Checkpoint, written: Path, batch: dict[str, Tensor], sentences: tuple[str, ...]
) -> None:
    with quiet_transformers(), torch.no_grad():
        before = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint("bert"))(**batch).logits
        after = AutoModelForSequenceClassification.from_pretrained(written)(**batch).logits
        tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (tiny_checkpoint("bert"), written)]
    assert torch.equal(before, after)
    assert tokenizers[0](list(sentences))["input_ids"] == tokenizers[1](list(sentences))["input_ids"]


def test_weights_and_amax_are_in_one_safetensors_file(tiny_checkpoint: Checkpoint, written: Path) -> None:
    original, stored = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint("bert"), written))
    amax = read_amax(written)
    assert set(stored) == set(original) | set(amax)
    assert all(torch.equal(stored[name], original[name]) for name in original)
    assert len(amax) == 2 * 20
    query = "bert.encoder.layer.0.attention.self.query"
    assert amax[f"{query}._weight_quantizer._amax"].shape == (32, 1)  # QDQBERT's names and shapes
    assert amax[f"{query}._input_quantizer._amax"].shape == ()


def test_sentence_transformers_head_survives(
    tiny_checkpoint: Checkpoint, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny_checkpoint("bert", "feature-extraction"), tmp_path / "source"))
    write_json(source / "modules.json", MODULES)
    write_json(source / "1_Pooling" / "config.json", POOLING)
    write_json(source / "sentence_bert_config.json", {"max_seq_length": 40})
    loaded = calibrated(source, tmp_path / "checkpoint", batch, named_spec("linear"))
    assert loaded.outputs == ("sentence_embedding",)
    again, _, _ = load_checkpoint(tmp_path / "checkpoint")
    assert again.pooling == loaded.pooling
    assert again.outputs == loaded.outputs
    assert torch.equal(*outputs(loaded, batch), *outputs(again, batch))
    assert (tmp_path / "checkpoint" / "sentence_bert_config.json").is_file()


def test_what_it_says_about_itself(written: Path, tiny_checkpoint: Checkpoint, batch: dict[str, Tensor]) -> None:
    assert is_checkpoint(written)
    assert not is_checkpoint(tiny_checkpoint("bert"))
    assert read_amax(written)
    assert not read_amax(tiny_checkpoint("bert"))
    spec, content = read_spec(written)
    assert spec == named_spec("qdqbert")
    assert content["task"] == "text-classification"
    tokens = int(batch["attention_mask"].sum())
    assert content["calibration"] == {"algorithm": "max", "percentile": None, "samples": 8, "tokens": tokens}


# Damage


def test_a_folder_that_is_none(tiny_checkpoint: Checkpoint) -> None:
    with pytest.raises(
        ModelError, match=r"is not a calibrated checkpoint, it has no quant_spec\.json; run 'qdq calibrate'"
    ):
        load_checkpoint(tiny_checkpoint("bert"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"quant_spec\.json: cannot be read as JSON"),
        ("[]", r"quant_spec\.json: is not a JSON object"),
        ("{}", r"quant_spec\.json: has no 'spec' or no 'task'; write the checkpoint again"),
        ('{"spec": {}, "task": 3}', r"has no 'spec' or no 'task'"),
        ('{"spec": {"weight_bit": 8}, "task": "fill-mask"}', r"unknown key 'weight_bit'; did you mean 'weight_bits'\?"),
        ('{"spec": {"weight_bits": 99}, "task": "fill-mask"}', r"weight_bits: 99 is outside 2\.\.8; write"),
        ('{"spec": {"placement": "linar"}, "task": "fill-mask"}', r"did you mean 'linear'\?"),
    ],
)
def test_a_damaged_quant_spec(damaged: Path, content: str, message: str) -> None:
    (damaged / QUANT_SPEC).write_text(content)
    with pytest.raises(ModelError, match=message):
        load_checkpoint(damaged)


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


KEY = "bert.encoder.layer.1.output.dense._weight_quantizer._amax"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.pop(KEY), "the checkpoint has no amax for it; calibrate again"),
        (
            lambda state: state.update({KEY: torch.tensor(1.0)}),
            r"the checkpoint's amax is \[\], not \[32, 1\]; calibrate",
        ),
        (lambda state: state.update({KEY: torch.ones(31, 1)}), r"the checkpoint's amax is \[31, 1\], not \[32, 1\]"),
        (lambda state: state[KEY].fill_(float("nan")), "amax is not finite and non-negative"),
    ],
)
def test_a_missing_or_impossible_amax_names_its_point(
    damaged: Path, edit: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    edit_weights(damaged, edit)
    with pytest.raises(
        CalibrationError, match=rf"^bert\.encoder\.layer\.1\.output\.dense\.weight_quantizer: {message}"
    ):
        load_checkpoint(damaged)


@pytest.mark.parametrize(
    ("key", "shape"),
    [("output._channel_scale", "31"), ("output.dense._row_scale", "31"), ("output.dense._smoothing", "63")],
)
def test_a_treatment_of_the_wrong_length_names_its_module(damaged: Path, key: str, shape: str) -> None:
    edit_weights(damaged, lambda state: state.update({f"bert.encoder.layer.1.{key}": torch.ones(int(shape))}))
    path, _, name = f"bert.encoder.layer.1.{key}".rpartition(".")
    with pytest.raises(CalibrationError, match=rf"^{re.escape(path)}: the checkpoint's {name} is \[{shape}\], not \["):
        load_checkpoint(damaged)


@pytest.mark.parametrize("size", [0, 7, 5000])
def test_truncated_weights(damaged: Path, size: int) -> None:
    path = damaged / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"model\.safetensors: is (not a safetensors file|cut off) .* again"):
        load_checkpoint(damaged)
    with pytest.raises(
        ModelError, match=r"model\.safetensors: (cannot be read|is not a safetensors file|is cut off) .* again"
    ):
        read_amax(damaged)


# Writing


def test_an_interrupted_write_leaves_the_old_folder(
    damaged: Path, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sha256_tree(damaged.parent)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        calibrated(damaged, damaged, batch, named_spec("linear"))
    assert sha256_tree(damaged.parent) == before


def test_it_may_replace_the_folder_it_was_loaded_from(damaged: Path, batch: dict[str, Tensor]) -> None:
    calibrated(damaged, damaged, batch, named_spec("linear"))
    again, spec, _ = load_checkpoint(damaged)
    assert spec.placement == "linear"
    assert len(quantizers(again.model)) == 2 * 12
    assert [path.name for path in damaged.parent.iterdir()] == [damaged.name]


@pytest.mark.parametrize("size", [100_000, 100], ids=["weights", "configuration"])
def test_a_full_disk_is_one_clear_error(
    tiny_checkpoint: Checkpoint, damaged: Path, full_disk: Callable[[int], Any], size: int
) -> None:
    before = sha256_tree(damaged.parent)
    loaded = load_model(str(tiny_checkpoint("bert")))
    table = CalibrationTable({}, {}, {}, "max", None, 0, 0)
    with full_disk(size), pytest.raises(DeployError) as refused:
        write_checkpoint(loaded, QuantSpec(), table, damaged)
    message = str(refused.value)
    assert message.startswith(f"cannot write {damaged}: ")
    assert "too large" in message
    assert message.endswith("free space or choose a writable folder with --out (OUT=)")
    assert sha256_tree(damaged.parent) == before


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, which root cannot write either")
def test_a_read_only_place(tiny_checkpoint: Checkpoint, batch: dict[str, Tensor]) -> None:
    with pytest.raises(DeployError, match="cannot write /proc/checkpoint"):
        calibrated(tiny_checkpoint("bert"), Path("/proc/checkpoint"), batch, named_spec("linear"))
