"""Files of sentence-transformers beside a cross-encoder: releases from 5 on keep its activation there.

Releases 3 and 4 wrote it into config.json, where `qdq.tasks.heads` reads it; it is put there for those that do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdq.errors import ModelError
from qdq.loading.pooling import LIBRARY, SETTINGS, TRANSFORMER
from qdq.loading.source import read_json, read_object

KIND, TASK = "CrossEncoder", "sequence-classification"


def cross_encoder_keys(folder: Path) -> dict[str, Any]:
    """Keys of config.json that say what the files of a cross-encoder ask for, {} for any other folder.

    Raises ModelError for what is not computed: modules behind the classifier, a default prompt, text in lower case.
    """
    path = folder / SETTINGS
    settings = read_object(path) if path.is_file() else {}
    if settings.get("model_type") != KIND:
        return {}
    _check_modules(folder / "modules.json")
    for name in TRANSFORMER:
        if (folder / name).is_file():
            _check_transformer(folder / name)
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not isinstance(default, str | None):
        raise ModelError(f"{path}: prompts must be texts by name, and default_prompt_name one of the names")
    if default and prompts.get(default):
        raise ModelError(
            f"{path}: the default prompt '{default}' is not supported for a cross-encoder; put its text in front of "
            "the first text of every pair, and set default_prompt_name to null"
        )
    activation = settings.get("activation_fn")
    if activation is not None and not isinstance(activation, str):
        raise ModelError(f"{path}: activation_fn is {activation!r}; give the name of a function of torch, or null")
    return {LIBRARY: {"activation_fn": activation}} if activation else {}


def _check_modules(path: Path) -> None:
    """Raise ModelError unless the chain is the classifier alone, in this folder."""
    if not path.is_file():
        return
    entries = read_json(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ModelError(f"{path}: is not a list of sentence-transformers modules; copy the checkpoint again")
    kinds = [str(entry.get("type", "")).rpartition(".")[2] for entry in entries]
    if kinds != ["Transformer"] or entries[0].get("path"):
        raise ModelError(
            f"{path}: the chain {' -> '.join(kinds) or 'without modules'} of a cross-encoder is not supported; one "
            "Transformer in this folder is"
        )


def _check_transformer(path: Path) -> None:
    settings = read_object(path)
    task = settings.get("transformer_task", TASK)
    if task != TASK:
        raise ModelError(f"{path}: transformer_task '{task}' is not supported for a cross-encoder; {TASK} is")
    if settings.get("do_lower_case"):
        raise ModelError(f"{path}: do_lower_case is not supported for a cross-encoder; set it in tokenizer_config.json")
