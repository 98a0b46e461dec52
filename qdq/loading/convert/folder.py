"""A folder of PaddleNLP, or of an ERNIE-M in transformers 4, as a folder that transformers and this project read."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qdq.base.artifacts import atomic_folder, write_json, write_text
from qdq.errors import ConfigError, ModelError
from qdq.loading.convert.names import Source, renamed, source_of
from qdq.loading.convert.pickled import read_pdparams
from qdq.loading.files import require_whole
from qdq.loading.source import read_object

Weights = dict[str, np.ndarray[Any, Any]]
WORD, TYPES, TASK = (f"embeddings.{name}_embeddings.weight" for name in ("word", "token_type", "task_type"))
KEPT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "id2label", "label2id")
# Tokenizers that are BERT's word pieces over vocab.txt; None: the configuration names none
WORD_PIECES = (
    *(None, "BertTokenizer", "BertTokenizerFast", "ErnieTokenizer", "ErnieGramTokenizer", "PPMiniLMTokenizer"),
    *("TinyBertTokenizer", "RobertaTokenizer", "RobertaChineseTokenizer"),
)


@dataclass(frozen=True)
class Converted:
    """The model that was written, and the parts of the source that were not.

    Attributes:
        architecture: class in transformers that reads the folder.
        notes: one line each on heads that were left out, and on a tokenizer that is still missing.
    """

    architecture: str
    notes: tuple[str, ...]


def convert(source: Path, target: Path, allow_pickle: bool = False) -> Converted:
    """Write the model in folder `source` to the new folder `target`: config.json, model.safetensors, tokenizer files.

    `source` has config.json or model_config.json, and one of model_state.pdparams, another ``*.pdparams``,
    model.safetensors, or, with `allow_pickle`, pytorch_model.bin. Raises ModelError for what cannot be converted,
    ConfigError for a target that is not new.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target}: is there already; give a new folder")
    values = _configuration(source)
    named = values.get("architectures") or [values.get("init_class") or ""]
    family, ending = source_of(str(named[0]), str(source))
    weights, torch_form = _weights(source, allow_pickle)
    names, left = renamed(weights, family, ending)
    made = {new: _oriented(name, weights[name], torch_form) for name, new in names.items()}
    config = _new_config(source, values, family, ending, made)
    notes = [f"left out, no part of {config['architectures'][0]}: {', '.join(left)}"] if left else []
    with atomic_folder(target) as partial:
        save_file(made, partial / "model.safetensors", metadata={"format": "pt"})
        write_json(partial / "config.json", config)
        notes += _tokenizer(source, partial, config)
    return Converted(config["architectures"][0], tuple(notes))


def _configuration(folder: Path) -> dict[str, Any]:
    """The keys of config.json, or of PaddleNLP's earlier model_config.json, which nests those of the encoder."""
    for name in ("config.json", "model_config.json"):
        if (folder / name).is_file():
            return _flat(read_object(folder / name))
    raise ModelError(
        f"{folder}: has no config.json and no model_config.json; give the folder that save_pretrained wrote"
    )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for argument in values.get("init_args") or []:
        inner |= _flat(argument) if isinstance(argument, dict) else {}
    return inner | {key: value for key, value in values.items() if key != "init_args"}


def _weights(folder: Path, allow_pickle: bool) -> tuple[Weights, bool]:
    """Arrays by name, and True where linear weights are [out, in] as torch has them (Paddle's are [in, out])."""
    pickled = sorted(folder.glob("*.pdparams"))
    states = [path for path in pickled if path.name == "model_state.pdparams"] or pickled
    if (folder / "model.safetensors").is_file():
        return _safetensors(folder / "model.safetensors")
    if len(states) == 1:
        return read_pdparams(states[0]), False
    if states:
        raise ModelError(
            f"{folder}: holds {len(states)} files of weights ({states[0].name}, ...); leave the one that counts"
        )
    file = folder / "pytorch_model.bin"
    if file.is_file() and not allow_pickle:
        raise ModelError(f"{file}: a pickle can run code when read; pass --allow-pickle if you trust its source")
    if file.is_file():
        return _torch_pickle(file), True
    raise ModelError(f"{folder}: has no model_state.pdparams, model.safetensors or pytorch_model.bin")


def _safetensors(path: Path) -> tuple[Weights, bool]:
    require_whole(path)
    try:
        with safe_open(path, framework="np") as file:
            form = (file.metadata() or {}).get("format")
            return {name: _plain(file.get_tensor(name)) for name in file.keys()}, form == "pt"  # noqa: SIM118
    except (SafetensorError, TypeError) as error:  # numpy has no bfloat16
        raise ModelError(f"{path}: cannot be read ({error}); save the weights as float32") from error


def _torch_pickle(path: Path) -> Weights:
    import torch  # only this form needs it

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.float().numpy() for name, tensor in state.items()}
    except (UnpicklingError, RuntimeError, EOFError, AttributeError, OSError) as error:
        raise ModelError(f"{path}: is damaged or holds more than tensors ({error})") from error


def _plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _oriented(name: str, array: np.ndarray[Any, Any], torch_form: bool) -> np.ndarray[Any, Any]:
    """Weights of linears [out, in], everything in float32."""
    turned = array.T if array.ndim == 2 and "embeddings." not in name and not torch_form else array
    return np.ascontiguousarray(turned, dtype=np.float32)


def _new_config(folder: Path, values: Mapping[str, Any], family: Source, ending: str, made: Weights) -> dict[str, Any]:
    """The configuration: sizes as the weights have them, the rest as the source says. May complete `made`."""
    _refuse(folder, values, family)
    base = "" if ending == "Model" else f"{family.base}."
    config = {
        **{key: values[key] for key in KEPT if values.get(key) is not None},
        **_sizes(folder, base, family, made),
        "model_type": family.model_type,
        "architectures": [f"{family.classes}{ending}"],
        "num_attention_heads": values["num_attention_heads"],
        "hidden_act": values.get("hidden_act", "gelu"),
        "layer_norm_eps": values.get("layer_norm_eps", family.eps),
        "pad_token_id": values.get("pad_token_id", family.padding),
    }
    # A classifier's classes, where the source does not name them
    head = made.get("classifier.out_proj.bias", made.get("classifier.bias"))
    if head is not None and "id2label" not in config and ending != "ForMultipleChoice":
        config["id2label"] = {str(index): f"LABEL_{index}" for index in range(len(head))}
    # ERNIE 3.0 adds a vector for the task, always its first
    task = made.get(f"{base}{TASK}")
    if task is not None and values.get("use_task_id"):
        config |= {"use_task_id": True, "task_type_vocab_size": len(task)}
    elif task is not None:
        del made[f"{base}{TASK}"]
    return config


def _refuse(folder: Path, values: Mapping[str, Any], family: Source) -> None:
    """Raise ModelError for what transformers' class does not compute."""
    for key in ("rel_pos_size", "task_id"):
        if values.get(key):
            raise ModelError(f"{folder}: {key} is {values[key]}, which {family.classes}Model does not compute")
    if family.prefix == "roberta" and values.get("cls_token_id", 101) == 0:
        raise ModelError(f"{folder}: is an English RoBERTa; take it from the hub in transformers format")
    if not isinstance(values.get("num_attention_heads"), int):
        raise ModelError(f"{folder}: its configuration does not say num_attention_heads; copy it again")


def _sizes(folder: Path, base: str, family: Source, made: Weights) -> dict[str, int]:
    """Sizes by their keys of config.json. Raises ModelError for weights that are not whole, or stored another way."""
    first = f"{base}encoder.layer.0."
    try:
        vocabulary, hidden = made[f"{base}{WORD}"].shape
        if family.base == "roberta":  # XLM-R has types: one, which adds nothing here
            made[f"{base}{TYPES}"] = np.zeros((1, hidden), np.float32)
        neurons, width = made[f"{first}intermediate.dense.weight"].shape
        found = {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "num_hidden_layers": sum(name.endswith("self.query.weight") for name in made),
            "intermediate_size": neurons,
            "max_position_embeddings": len(made[f"{base}embeddings.position_embeddings.weight"]),
            "type_vocab_size": len(made[f"{base}{TYPES}"]),
        }
        biases = len(made[f"{first}intermediate.dense.bias"])
    except (KeyError, ValueError) as error:
        raise ModelError(f"{folder}: has no weight {error}; its file of weights is not whole") from error
    if (biases, width) != (neurons, hidden):
        raise ModelError(
            f"{folder}: its linear weights are not stored as the file's format says ({first}intermediate.dense is "
            f"{neurons} by {width}); save them as float32 in the library that wrote them"
        )
    return found


def _tokenizer(source: Path, target: Path, config: Mapping[str, Any]) -> list[str]:
    """Write the tokenizer; returns a line when its tokenizer.json has to be brought."""
    path = source / "tokenizer_config.json"
    values = read_object(path) if path.is_file() else {}
    multilingual, notes = config["model_type"] == "xlm-roberta", []
    name = "PreTrainedTokenizerFast"
    if (source / "tokenizer.json").is_file():
        shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    elif (source / "vocab.txt").is_file() and values.get("tokenizer_class") in WORD_PIECES and not multilingual:
        name = "BertTokenizer"
        lines = (source / "vocab.txt").read_text(encoding="utf-8").splitlines()
        # ERNIE's own files have an id behind each token
        if all("\t" in line for line in lines if line):
            lines = [line.split("\t")[0] for line in lines]
        write_text(target / "vocab.txt", "\n".join(lines) + "\n")
    else:
        notes.append("its tokenizer is not word pieces over a vocab.txt: put a tokenizer.json beside the model")
    # Its settings, for a tokenizer.json that is brought as well
    offset = config["pad_token_id"] + 1 if multilingual else 0
    kept = {f"{token}_token": f"[{token.upper()}]" for token in ("unk", "sep", "pad", "cls", "mask")}
    kept |= {key: value for key, value in values.items() if key in kept and isinstance(value, str)}
    kept |= {"do_lower_case": values.get("do_lower_case", True)} if name == "BertTokenizer" else {}
    most = config["max_position_embeddings"] - offset
    write_json(target / "tokenizer_config.json", {"tokenizer_class": name, "model_max_length": most, **kept})
    return notes
