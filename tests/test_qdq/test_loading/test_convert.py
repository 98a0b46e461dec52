"""Checkpoints of PaddleNLP and of ERNIE-M: converted they compute what an independent forward pass computes.

Files are written in the layouts that paddle.save publishes: a pickled dict of names to arrays, or to (name, array).
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from qdq.errors import ConfigError, ModelError
from qdq.loading.convert.__main__ import main
from qdq.loading.convert.folder import convert
from qdq.loading.model import load_model

Array = np.ndarray[Any, Any]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "red", "house", ".", "##s"]
HIDDEN, HEADS, NEURONS, LAYERS, POSITIONS, CLASSES = 16, 2, 24, 2, 20, 3


# Class names of PaddleNLP: name of the encoder, LayerNorm's epsilon, activation, rows of the table of types (0: none)
FAMILIES: dict[str, tuple[str, float, str, int]] = {
    "Bert": ("bert", 1e-12, "gelu", 2),
    "Ernie": ("ernie", 1e-12, "relu", 4),
    "ErnieGram": ("ernie_gram", 1e-5, "gelu", 2),
    "ErnieM": ("ernie_m", 1e-5, "gelu", 0),
    "PPMiniLM": ("ppminilm", 1e-12, "relu", 4),
    "TinyBert": ("tinybert", 1e-12, "gelu", 2),
    "Roberta": ("roberta", 1e-12, "gelu", 2),
}


def state_of(family: str, task_rows: int = 0) -> dict[str, Array]:
    """Random weights under PaddleNLP's names, linears [in, out]."""
    prefix, _, _, types = FAMILIES[family]
    random = np.random.default_rng(3)
    state: dict[str, Array] = {}

    def put(name: str, *shape: int) -> None:
        state[name] = (0.3 * random.standard_normal(shape)).astype(np.float32)

    tables = {"word": len(WORDS), "position": POSITIONS, "token_type": types, "task_type": task_rows}
    for name, rows in tables.items():
        if rows:
            put(f"{prefix}.embeddings.{name}_embeddings.weight", rows, HIDDEN)
    norms = [f"{prefix}.embeddings.layer_norm"]
    for layer in range(LAYERS):
        block = f"{prefix}.encoder.layers.{layer}"
        linears = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "out")}
        for name, shape in {**linears, "linear1": (HIDDEN, NEURONS), "linear2": (NEURONS, HIDDEN)}.items():
            put(f"{block}.{name}.weight", *shape)
            put(f"{block}.{name}.bias", shape[1])
        norms += [f"{block}.norm1", f"{block}.norm2"]
    for norm in norms:
        put(f"{norm}.weight", HIDDEN)
        put(f"{norm}.bias", HIDDEN)
    put(f"{prefix}.pooler.dense.weight", HIDDEN, HIDDEN)
    put(f"{prefix}.pooler.dense.bias", HIDDEN)
    put("classifier.weight", HIDDEN, CLASSES)
    put("classifier.bias", CLASSES)
    return state


def reference(family: str, state: dict[str, Array], ids: Array, mask: Array, types: Array) -> Array:
    """Logits of a sequence classifier, written after PaddleNLP's layers: nothing of the product is in it.

    For a state with UIE's heads the probability of a start and of an end at every token, [2, B, S].
    """
    prefix, eps, activation, rows = FAMILIES[family]

    def linear(name: str, x: Array) -> Array:
        return x @ state[f"{name}.weight"] + state[f"{name}.bias"]

    def norm(name: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def heads(x: Array) -> Array:
        return x.reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)

    def activated(x: Array) -> Array:
        return np.maximum(x, 0) if activation == "relu" else x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

    tables = f"{prefix}.embeddings"
    positions = np.arange(ids.shape[1]) + (2 if family == "ErnieM" else 0)
    x = state[f"{tables}.word_embeddings.weight"][ids] + state[f"{tables}.position_embeddings.weight"][positions]
    x = x + state[f"{tables}.token_type_embeddings.weight"][types] if rows else x
    if f"{tables}.task_type_embeddings.weight" in state:
        x = x + state[f"{tables}.task_type_embeddings.weight"][0]
    x = norm(f"{tables}.layer_norm", x)
    for layer in range(LAYERS):
        block = f"{prefix}.encoder.layers.{layer}"
        q, k, v = (heads(linear(f"{block}.self_attn.{name}_proj", x)) for name in "qkv")
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(HIDDEN // HEADS) + np.where(mask, 0, -1e9)[:, None, None, :]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        x = norm(f"{block}.norm1", x + linear(f"{block}.self_attn.out_proj", mixed))
        x = norm(f"{block}.norm2", x + linear(f"{block}.linear2", activated(linear(f"{block}.linear1", x))))
    if "linear_start.weight" in state:
        return np.stack([1 / (1 + np.exp(-linear(name, x)[..., 0])) for name in ("linear_start", "linear_end")])
    return linear("classifier", np.tanh(linear(f"{prefix}.pooler.dense", x[:, 0])))


def folder_of(path: Path, family: str, state: dict[str, Any], protocol: int = 4, **config: Any) -> Path:
    """A folder as PaddleNLP 2.4 saves it."""
    path.mkdir()
    inner = {"init_class": f"{family}Model", "num_attention_heads": HEADS, "hidden_act": FAMILIES[family][2], **config}
    values = {"init_args": [inner], "num_classes": CLASSES, "init_class": f"{family}ForSequenceClassification"}
    (path / "model_config.json").write_text(json.dumps(values), encoding="utf-8")
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    with (path / "model_state.pdparams").open("wb") as file:
        pickle.dump(state, file, protocol=protocol)
    return path


IDS = np.array([[2, 5, 6, 7, 3, 0], [2, 8, 9, 10, 6, 3]])
MASK = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
SEGMENTS = np.array([[0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1]])


def logits(folder: Path, segments: Array = SEGMENTS, ids: Array = IDS) -> Array:
    loaded = load_model(str(folder))
    feed = {"input_ids": ids, "attention_mask": MASK, "token_type_ids": segments}
    with torch.no_grad():
        found: Array = loaded.module()(**{name: torch.from_numpy(feed[name]) for name in loaded.inputs})[0].numpy()
    return found


@pytest.mark.document_row("000/15", "000/16")
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "ErnieM"])
def test_a_folder_of_paddlenlp_computes_the_same(family: str, tmp_path: Path) -> None:
    rows = 3 if family == "Ernie" else 0
    state = state_of(family, rows)
    table = {"StructuredToParameterName@@": {name: f"linear_{number}.w_0" for number, name in enumerate(state)}}
    config = {"use_task_id": True, "task_type_vocab_size": rows} if rows else {}
    source = folder_of(tmp_path / "paddle", family, {**state, **table}, **config)
    made = convert(source, tmp_path / "new")
    assert made.notes == ()
    expected = reference(family, state, IDS, MASK, SEGMENTS)
    np.testing.assert_allclose(logits(tmp_path / "new"), expected, rtol=0, atol=2e-5)
    tokens = load_model(str(tmp_path / "new")).tokenizer("The cat sat.")["input_ids"]
    assert tokens == [2, 5, 6, 7, 10, 3]


def spans_of(folder: Path, ids: Array = IDS) -> Array:
    """Start and end probabilities of a converted UIE, [2, B, S]."""
    loaded = load_model(str(folder))
    assert loaded.task.name == "information-extraction" and loaded.outputs == ("start_prob", "end_prob")
    feed = {"input_ids": ids, "attention_mask": MASK, "token_type_ids": SEGMENTS}
    with torch.no_grad():
        return np.stack(
            [side.numpy() for side in loaded.module()(**{n: torch.from_numpy(feed[n]) for n in loaded.inputs})]
        )


def uie_state(family: str, encoder: str, task_rows: int = 0) -> dict[str, Array]:
    """Weights of PaddleNLP's UIE; Taskflow's files call the encoder ``encoder``, later ones by its family."""
    prefix = FAMILIES[family][0]
    state = {name: array for name, array in state_of(family, task_rows).items() if "classifier" not in name}
    random = np.random.default_rng(4)
    for name in ("linear_start", "linear_end"):
        state |= {f"{name}.weight": random.standard_normal((HIDDEN, 1)).astype(np.float32)}
        state |= {f"{name}.bias": random.standard_normal(1).astype(np.float32)}
    return {re.sub(f"^{prefix}", encoder, name): array for name, array in state.items()}


@pytest.mark.parametrize("encoder", ["ernie", "encoder"])
def test_a_uie_computes_the_same(encoder: str, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "paddle", "Ernie", uie_state("Ernie", encoder, 3), use_task_id=True)
    values = json.loads((source / "model_config.json").read_text(encoding="utf-8"))
    (source / "model_config.json").write_text(json.dumps({**values, "init_class": "UIE"}), encoding="utf-8")
    made = convert(source, tmp_path / "new")
    assert made.architecture == "ErnieUIE"
    assert made.notes == (f"left out, no part of ErnieUIE: {encoder}.pooler.dense.bias, {encoder}.pooler.dense.weight",)
    expected = reference("Ernie", uie_state("Ernie", "ernie", 3), IDS, MASK, SEGMENTS)
    np.testing.assert_allclose(spans_of(tmp_path / "new"), expected, rtol=0, atol=1e-5)


def test_a_uie_m_becomes_one_on_xlm_roberta(tmp_path: Path, tiny_tokenizer_json: Path) -> None:
    source = folder_of(tmp_path / "source", "ErnieM", uie_state("ErnieM", "ernie_m"), pad_token_id=1)
    values = json.loads((source / "model_config.json").read_text(encoding="utf-8"))
    (source / "model_config.json").write_text(json.dumps({**values, "init_class": "UIEM"}), encoding="utf-8")
    (source / "vocab.txt").unlink()
    assert convert(source, tmp_path / "new").architecture == "XLMRobertaUIE"
    (tmp_path / "new" / "tokenizer.json").write_bytes(tiny_tokenizer_json.read_bytes())
    ids = np.where(MASK, np.maximum(IDS, 2), 1)
    expected = reference("ErnieM", uie_state("ErnieM", "ernie_m"), ids, MASK, SEGMENTS)
    real = MASK.astype(bool)  # padding has another position in XLM-R, and no meaning
    np.testing.assert_allclose(spans_of(tmp_path / "new", ids)[:, real], expected[:, real], rtol=0, atol=1e-5)


@pytest.mark.document_row("000/15", "000/16")
@pytest.mark.parametrize("form", ["paddle", "transformers 4"])
def test_an_ernie_m_becomes_an_xlm_roberta(form: str, tmp_path: Path, tiny_tokenizer_json: Path) -> None:
    state = state_of("ErnieM")
    source = folder_of(tmp_path / "source", "ErnieM", state, pad_token_id=1)
    (source / "vocab.txt").unlink()
    if form == "transformers 4":  # its class has a module more, and torch's orientation
        (source / "model_state.pdparams").unlink()
        (source / "model_config.json").unlink()
        turned = {
            re.sub(r"self_attn\.([qkv])_proj", r"self_attn.self_attn.\1_proj", name): np.ascontiguousarray(
                array.T if array.ndim == 2 and "embeddings." not in name else array
            )
            for name, array in state.items()
        }
        save_file(turned, source / "model.safetensors", metadata={"format": "pt"})
        config = {"model_type": "ernie_m", "architectures": ["ErnieMForSequenceClassification"]}
        config |= {"num_attention_heads": HEADS, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "pad_token_id": 1}
        (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(ModelError, match=r"no class for 'ernie_m'; convert it: python -m qdq\.loading\.convert"):
            load_model(str(source))
    (note,) = convert(source, tmp_path / "new").notes
    assert "put a tokenizer.json beside the model" in note
    (tmp_path / "new" / "tokenizer.json").write_bytes(tiny_tokenizer_json.read_bytes())
    ids = np.where(MASK, np.maximum(IDS, 2), 1)
    found = logits(tmp_path / "new", ids=ids)
    np.testing.assert_allclose(found, reference("ErnieM", state, ids, MASK, SEGMENTS), rtol=0, atol=2e-5)


@pytest.fixture
def tiny_tokenizer_json(tmp_path: Path) -> Path:
    """A tokenizer.json whose ids fit the tiny table, padding at 1."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: index for index, word in enumerate(["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", *WORDS[5:]])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_the_command_says_what_it_wrote_and_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = state_of("TinyBert") | {"tinybert.fit_dense.weight": np.zeros((HIDDEN, 4), np.float32)}
    source = folder_of(tmp_path / "paddle", "TinyBert", state)
    with pytest.raises(ModelError, match=r"is a folder of PaddleNLP; convert it: python -m qdq\.loading\.convert"):
        load_model(str(source))
    assert main([str(source), "--out", str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out == (
        f"{tmp_path / 'new'}: BertForSequenceClassification\n"
        "left out, no part of BertForSequenceClassification: tinybert.fit_dense.weight\n"
    )
    assert main([str(source), "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'new'}: is there already; give a new folder\n"
    (source / "model_config.json").write_text('{"init_class": "GPTModel"}', encoding="utf-8")
    assert main([str(source), "--out", str(tmp_path / "other")]) == 1
    assert "GPTModel is not converted; known are those of Bert, Ernie" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "change", "config", "message"),
    [
        ("Ernie", {"ernie.encoder.layers.1.linear1.weight": None}, {}, "has no weights for 1 parameters"),
        ("Ernie", {"ernie.embeddings.word_embeddings.weight": None}, {}, "file of weights is not whole"),
        ("Bert", {"bert.encoder.layers.0.gate.weight": np.zeros(2)}, {}, "does not compute"),
        ("ErnieGram", {}, {"rel_pos_size": 18}, "rel_pos_size is 18"),
        ("Bert", {}, {"num_attention_heads": None}, "does not say num_attention_heads"),
        ("Roberta", {}, {"cls_token_id": 0}, "English RoBERTa"),
    ],
)
def test_models_that_cannot_be_converted(
    family: str, change: dict[str, Any], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    state = {name: array for name, array in {**state_of(family), **change}.items() if array is not None}
    source = folder_of(tmp_path / "paddle", family, state, **config)
    with pytest.raises(ModelError, match=message):
        convert(source, tmp_path / "new")
        load_model(str(tmp_path / "new"))


def test_paddle_weights_in_safetensors_are_converted_and_named_where_they_are_not(tmp_path: Path) -> None:
    """As the two lines of Paddle write them."""
    state = state_of("Ernie")
    source = folder_of(tmp_path / "paddle", "Ernie", state)
    (source / "model_state.pdparams").unlink()
    save_file(state, source / "model.safetensors")
    convert(source, tmp_path / "new")
    expected = reference("Ernie", state, IDS, MASK, SEGMENTS)
    np.testing.assert_allclose(logits(tmp_path / "new"), expected, rtol=0, atol=2e-5)
    (source / "config.json").write_bytes((tmp_path / "new" / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"look like PaddleNLP's names, of which 'python -m qdq\.loading\.convert"):
        load_model(str(source))
    with pytest.raises(ConfigError, match="is there already"):
        convert(source, source)


@pytest.mark.document_row("000/15")
def test_the_published_files_of_tinybert_are_read(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """huawei-noah's: config.json without model_type, BERT's names, projections to the teacher, and vocab.txt alone."""
    from safetensors.torch import load_file

    source = tiny_checkpoint("bert", "feature-extraction")
    values = json.loads((source / "config.json").read_text(encoding="utf-8"))
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    config = {key: values[key] for key in (*sizes, "type_vocab_size", "max_position_embeddings", "hidden_act")}
    config |= {"cell": {}, "emb_size": 312, "structure": [], "pre_trained": ""}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    weights = {f"bert.{name}": tensor for name, tensor in load_file(source / "model.safetensors").items()}
    extra = {
        "fit_dense.weight": torch.zeros(8, 32),
        "fit_denses.0.bias": torch.zeros(8),
        "cls.predictions.bias": torch.zeros(12),
    }
    torch.save(weights | extra, tmp_path / "pytorch_model.bin")
    loaded = load_model(str(tmp_path), "feature-extraction", allow_pickle=True)
    assert "names no model_type" in caplog.text and "fit_dense.weight" in caplog.text
    expected = load_model(str(source)).module()
    feed = {"input_ids": torch.from_numpy(IDS), "attention_mask": torch.from_numpy(MASK)}
    with torch.no_grad():
        assert torch.equal(loaded.module()(**feed)[0], expected(**feed)[0])
