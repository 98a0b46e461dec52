"""Weights, files and keys of a checkpoint beyond its model: refused, taken off or named, never dropped in silence."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, PreTrainedConfig

from qdq.errors import ModelError
from qdq.inject.families import FAMILIES
from qdq.load.model import load_model

Checkpoint = Callable[..., Path]


@pytest.fixture
def folder(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A copy of the tiny BERT classifier, to add to."""
    return Path(shutil.copytree(tiny_checkpoint("bert"), tmp_path / "tiny-bert"))


def rename(folder: Path, change: Callable[[str], str], **more: torch.Tensor) -> None:
    """Save the weights under changed names, with `more` of them."""
    state = {change(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file({**state, **more}, folder / "model.safetensors", metadata={"format": "pt"})


def add(folder: Path, *names: str) -> None:
    rename(folder, str, **{name: torch.ones(2) for name in names})


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        ("bert.encoder.layer.0.attention.self.distance_embedding.weight", "relative positions"),
        ("bert.encoder.layer.0.attention.self.query.lora_A.default.weight", "an adapter: merge it .*merge_and_unload"),
        ("bert.encoder.layer.0.output.adapters.x.weight", "an adapter"),
        ("bert.encoder.layer.0.crossattention.self.query.weight", "cross-attention"),
        ("bert.encoder.layer.0.mlp.gated_layers.weight", "the layers of another architecture"),
        ("bert.encoder.layer.2.output.dense.weight", "another architecture's or library's layers"),
        ("bert.embeddings.language.weight", "another architecture's or library's layers"),
        ("crf.transitions", "a CRF behind the classifier"),
        ("dense2.weight", "another architecture's or library's layers"),
    ],
)
def test_weights_that_change_the_answer_are_refused(folder: Path, name: str, looks: str) -> None:
    add(folder, name)
    with pytest.raises(
        ModelError, match=rf"1 of its weights are not used by BertFor\w+ \({name}\); they look like {looks}"
    ):
        load_model(str(folder))


def test_harmless_weights_are_named_in_one_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(folder, "cls.predictions.bias", "cls.seq_relationship.bias", "bert.embeddings.position_ids", "loss.weight")
    load_model(str(folder))
    (line,) = [record.getMessage() for record in caplog.records if "does not use" in record.getMessage()]
    assert "cls.predictions.bias" in line


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model.", "module._orig_mod."])
def test_a_foreign_prefix_is_taken_off(folder: Path, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = load_model(str(folder)).model.state_dict()
    rename(folder, lambda name: prefix + name)
    for task in (None, "feature-extraction"):
        found = load_model(str(folder), task).model.state_dict()
        for name, tensor in found.items():
            assert torch.equal(tensor, expected[name if task is None else f"bert.{name}"])
    assert f"begin with {prefix}, which was taken off" in caplog.text


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_is_refused_with_and_without_its_base(folder: Path, file: str) -> None:
    (folder / file).write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=rf"holds an adapter .*{file}\); merge it"):
        load_model(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="holds an adapter"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position_embedding_type", "rotary"),
        ("position_embedding_type", "alibi"),
        ("rope_theta", 10000.0),
        ("alibi_starting_size", 512),
        ("relative_attention", True),
        ("attention_window", [64, 64]),
        ("sliding_window", 128),
        ("num_experts", 4),
        ("mlp_type", "glu"),
        ("normalize_before", True),
        ("compression_config", {"quant_method": "compressed-tensors"}),
        ("adapters", {"adapters": {"ner": "houlsby"}}),
        ("auto_map", {"AutoModel": "modeling.M"}),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        ("add_cross_attention", True),
        ("is_encoder_decoder", True),
        ("pruned_heads", {"0": [1]}),
    ],
)
def test_a_key_that_changes_the_computation_is_refused_by_name(folder: Path, key: str, value: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"config\.json: {key} .*not supported"):
        load_model(str(folder))


@pytest.mark.parametrize(("key", "value"), [("chunk_size_feed_forward", {"x": 1}), ("output_attentions", "no")])
def test_a_value_of_another_type_is_refused(folder: Path, key: str, value: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"config\.json: {key} is .*; give .*, or leave it out"):
        load_model(str(folder))


def test_keys_nobody_knows_are_named_in_one_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    harmless = {"do_sample": True, "torch_dtype": "float16", "gradient_checkpointing": True, "directionality": "bidi"}
    off = {"rope_theta": None, "use_alibi": False, "pruned_heads": {}}
    config = json.loads((folder / "config.json").read_text()) | harmless | off | {"layernorm_eps": 1e-5, "attn_bias": 1}
    (folder / "config.json").write_text(json.dumps(config))
    load_model(str(folder))
    (line,) = [record.getMessage() for record in caplog.records if "config.json" in record.getMessage()]
    assert line.endswith(": attn_bias, layernorm_eps")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_field_of_a_config_class_is_read_by_the_model_code(model_type: str) -> None:
    module = model_type.replace("-", "_")
    source = inspect.getsource(importlib.import_module(f"transformers.models.{module}.modeling_{module}"))
    made = CONFIG_MAPPING[model_type]()
    fields = set(vars(made)) - set(vars(PreTrainedConfig()))
    unread = {key for key in fields if not re.search(rf"config\.{key}\b|config, \"{key}\"", source)}
    # Ids of text generation, the random weights of a new model, ties that transformers' loading makes
    assert unread <= {"bos_token_id", "eos_token_id", "initializer_range", "tie_word_embeddings", "pad_token_id"}


@pytest.mark.parametrize("model_type", ["distilbert", "mpnet"])
def test_relative_positions_of_a_family_that_never_had_them_are_refused(
    model_type: str, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint(model_type), tmp_path / model_type))
    config = json.loads((folder / "config.json").read_text()) | {"position_embedding_type": "relative_key"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"'relative_key' is not supported for {model_type}"):
        load_model(str(folder))


def test_keys_that_change_only_what_is_returned_or_how_are_harmless(folder: Path) -> None:
    ids = torch.full((2, 6), 7)
    with torch.no_grad():
        (expected,) = load_model(str(folder)).module()(ids, torch.ones_like(ids))
    harmless = {"return_dict": False, "output_attentions": True, "chunk_size_feed_forward": 3, "pruned_heads": {}}
    config = json.loads((folder / "config.json").read_text()) | harmless
    (folder / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        (found,) = load_model(str(folder)).module()(ids, torch.ones_like(ids))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("model_head.pkl", "SetFit's classifier"),
        ("head_config.json", "a prediction head of the adapters library"),
        ("svm.joblib", "a scikit-learn model"),
        ("pytorch_model.bin", "model.safetensors is read in its place"),
    ],
)
def test_files_of_other_libraries_are_named_in_one_line(
    folder: Path, file: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / file).write_bytes(b"{}")
    load_model(str(folder))
    (line,) = [record.getMessage() for record in caplog.records if "not read" in record.getMessage()]
    assert f"{file} ({said}" in line
