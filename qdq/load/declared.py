"""Keys of a config.json that change what a model computes: refused by name where no class here computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdq.errors import ModelError
from qdq.load.source import read_object

# Only what is returned, never its values: the graph's outputs are the task's own.
RETURNED = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}


def refuse_config(folder: Path, values: dict[str, Any]) -> None:
    """Raise ModelError for a key of config.json, or of the tokenizer's, that asks for what is not computed here."""
    # Keys that ask for something else when they are set at all
    refused = {
        "auto_map": "the checkpoint has code of its own, which is never run; give one in a format transformers has a "
        "class for",
        "quantization_config": "its weights were quantized by another library; give the original floating-point ones",
        "add_cross_attention": "cross-attention reads a second model's states; give an encoder",
        "is_encoder_decoder": "it is a pair of encoder and decoder; give an encoder",
        "pruned_heads": "heads cut out by transformers are not built again; save it with the heads it had",
    }
    file = folder / "config.json"
    for key, reason in refused.items():
        if values.get(key):
            raise ModelError(f"{file}: {key} is not supported: {reason}")
    # Positions, and code behind the tokenizer
    kind = values.get("position_embedding_type")
    if kind not in (None, "absolute"):
        raise ModelError(
            f"{file}: position_embedding_type '{kind}' is not supported: transformers computes absolute positions "
            "only and would give other answers; give a checkpoint with absolute positions"
        )
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file() and _has_code(tokenizer):
        raise ModelError(
            f"{tokenizer}: auto_map is not supported: the tokenizer has code of its own, which is never run"
        )


def _has_code(tokenizer: Path) -> bool:
    try:
        return bool(read_object(tokenizer).get("auto_map"))
    except ModelError:
        return False  # the tokenizer's own loading says what is wrong with the file
