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
from qdq.loading.model import load_model
from qdq.loading.reference import open_reference

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
        ("classifier.dense.weight", "another architecture's or library's layers"),
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


@pytest.mark.parametrize(
    "prefix",
    [
        *("_orig_mod.", "module.", "model.", "module._orig_mod."),
        *("encoder.", "backbone.", "net.student.", "_fsdp_wrapped_module."),
    ],
)
def test_a_foreign_prefix_is_taken_off(folder: Path, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = load_model(str(folder)).model.state_dict()
    rename(folder, lambda name: prefix + name)
    for task in (None, "feature-extraction"):
        found = load_model(str(folder), task).model.state_dict()
        for name, tensor in found.items():
            assert torch.equal(tensor, expected[name if task is None else f"bert.{name}"])
    assert f"begin with {prefix}, which was taken off" in caplog.text


def test_weights_of_two_models_are_refused(folder: Path) -> None:
    """A bi-encoder keeps one for queries and one for passages."""
    state = load_file(folder / "model.safetensors")
    both = {f"{side}.{name}": tensor.clone() for side in ("query", "passage") for name, tensor in state.items()}
    save_file(both, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"holds the weights of 2 models, below passage\. and query\."):
        load_model(str(folder))


def test_weights_named_as_another_familys_are_refused(folder: Path) -> None:
    """RoBERTa counts positions from elsewhere, so its weights in BERT's class would answer wrongly."""
    rename(folder, lambda name: name.replace("bert.", "roberta."))
    with pytest.raises(ModelError, match=r"named as those of a model of another family \(roberta\.\)"):
        load_model(str(folder))


def test_an_adapters_wrapper_is_refused_as_an_adapter(folder: Path) -> None:
    rename(folder, lambda name: f"base_model.model.{name}".replace("query.", "query.base_layer."))
    with pytest.raises(ModelError, match="they look like an adapter: merge it"):
        load_model(str(folder))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_weights_in_codes_are_refused(folder: Path, dtype: torch.dtype) -> None:
    """transformers would take the codes for values."""
    state = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    save_file({**state, name: state[name].to(dtype)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{name} is stored as \w+, 1 tensors in all, so another library quantized"):
        load_model(str(folder))


def configure(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


def test_an_unknown_problem_type_is_refused(folder: Path) -> None:
    configure(folder, problem_type="multilabel")
    with pytest.raises(
        ModelError, match=r"problem_type is 'multilabel'; give single_label_classification, multi_label"
    ):
        load_model(str(folder))


def test_names_of_classes_that_contradict_each_other_are_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    configure(folder, id2label={"0": "no", "1": "yes"}, label2id={"no": 1, "yes": 0})
    assert load_model(str(folder)).labels == ("no", "yes")
    assert "id2label calls class 0 'no' and label2id class 1; id2label is used" in caplog.text


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
        ("lora/adapter_config.json", "an adapter in a folder of its own"),
        ("1_Pooling/config.json", "a pooling, which counts only where modules.json lists it"),
        ("best_thresholds.json", "thresholds of classes; those of config.json count"),
        ("pytorch_model.bin", "which cannot be compared, as it is no archive of torch; model.safetensors is what was"),
    ],
)
def test_files_of_other_libraries_are_named_in_one_line(
    folder: Path, file: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_bytes(b"{}")
    load_model(str(folder))
    (line,) = [record.getMessage() for record in caplog.records if "not read" in record.getMessage()]
    assert f"{file} ({said}" in line


def test_a_chain_behind_a_masked_language_model_is_named(
    tiny_checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SPLADE pools the logits of one."""
    source = tiny_checkpoint("bert", "fill-mask", num_hidden_layers=1)
    folder = Path(shutil.copytree(source, tmp_path / "splade"))
    (folder / "modules.json").write_text(json.dumps([{"type": "x.MLMTransformer"}, {"type": "x.SpladePooling"}]))
    load_model(str(folder))
    assert "modules.json (what sentence-transformers computes behind the model, for fill-mask nothing)" in caplog.text


def test_the_code_that_computes_attention_is_ours_to_choose(folder: Path) -> None:
    expected = load_model(str(folder)).model.state_dict()
    configure(folder, attn_implementation="flash_attention_2", _attn_implementation="flash_attention_2")
    found = load_model(str(folder)).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    open_reference(folder, "text-classification")


def test_padding_where_a_classifier_reads_is_refused(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    with pytest.raises(ModelError, match="padding_side is left, and text-classification reads the first token"):
        load_model(str(folder))


def test_pickled_weights_beside_others_are_named_when_they_are_others(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A fine-tuning that saved one format only leaves the base model in the other."""
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    load_model(str(folder))
    assert "not read" not in caplog.text
    changed = {name: tensor + (name == "classifier.bias") for name, tensor in state.items()}
    torch.save(changed, folder / "pytorch_model.bin")
    load_model(str(folder))
    said = f"other weights: 1 of {len(state)} tensors differ; model.safetensors is what was used"
    assert f"pytorch_model.bin ({said})" in caplog.text
