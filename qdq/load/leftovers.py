"""Weights and files a checkpoint holds beyond its model: refused where they change the answer, else named."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from qdq.errors import ModelError

PREFIXES = re.compile(r"^(?:(?:_orig_mod|module|model)\.)+")  # torch.compile, DataParallel, Lightning and trainers
ADAPTER_FILES = (
    *("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "pytorch_adapter.bin"),
    *(
        "adapter_fusion_config.json",
        "pytorch_model_adapter_fusion.bin",
        "prompt_encoder.bin",
        "ia3_weights.safetensors",
    ),
)
# Files behind or beside a model that another library reads, as patterns -> what each is
SIDE_FILES = (
    ("model_head.pkl", "SetFit's classifier behind the embeddings"),
    ("head_config.json", "a prediction head of the adapters library"),
    ("pytorch_model_head.bin", "a prediction head of the adapters library"),
    ("*.joblib", "a scikit-learn model"),
    ("*classifier*.pkl", "a pickled classifier"),
    ("*head*.pt", "a head of its own"),
    ("label_encoder.pkl", "names of classes, pickled"),
    ("final-model.pt", "Flair's model"),
    ("config.cfg", "spaCy's pipeline"),
    ("rules.json", "rules of another library"),
)
MERGE = "merge it into its base model first (merge_and_unload of peft) and save that with save_pretrained"

# Parts of a name -> what such a weight looks like; the first that fits is said
KINDS = (
    (
        r"encoder\.layers\.\d+\.(self_attn|linear[12]|norm[12])\.",
        "PaddleNLP's names, of which 'python -m qdq.load.convert FOLDER --out NEW' makes transformers'",
    ),
    (r"lora_|\.ia3_|adapter|prompt_embeddings|prefix_encoder", f"an adapter: {MERGE}"),
    (r"distance_embedding|rel_pos|relative", "relative positions, which this model class does not compute"),
    (r"rotary|inv_freq", "rotary positions, which this model class does not compute"),
    (r"crossattention", "cross-attention, which an encoder alone does not compute"),
    (r"gated|gate|\.w12|\.w1\.|\.Wqkv", "the layers of another architecture or library"),
    (r"(^|\.)crf\.|transitions", "a CRF behind the classifier, which this model class does not compute"),
    (r"weight_scale|qweight|qzeros|absmax|quant_state", "weights another library quantized; give the original ones"),
)
OTHER = "another architecture's or library's layers; give a checkpoint whose weights this class uses up"
# Heads of other tasks and of pre-training, losses, and buffers: nothing that the task at hand computes
HARMLESS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|pooler\..*)$"
    r"|^(cls|lm_head|predictions|sop_classifier|discriminator_predictions|generator_predictions|generator_lm_head"
    r"|vocab_(transform|layer_norm|projector)|qa_outputs|classifier|pre_classifier|sequence_summary)\."
    r"|(^|\.)fit_dense(s\.\d+)?\."  # TinyBERT's projections to its teacher
    r"|^(loss|criterion|class_weights)"
)


def refuse_adapters(folder: Path) -> None:
    """Raise ModelError for a folder with an adapter of peft or adapters, with or without its base model."""
    found = [name for name in ADAPTER_FILES if (folder / name).is_file()]
    if found:
        raise ModelError(f"{folder}: holds an adapter (LoRA or its kind: {', '.join(found)}); {MERGE}")


def name_side_files(folder: Path, safe: bool) -> str:
    """Return one line on files that change the answers of the library that reads them and are not read here, else "".

    `safe`: weights are read from safetensors, so that pickled ones beside them are not.
    """
    found = [
        f"{path.name} ({what})"
        for pattern, what in SIDE_FILES
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    ]
    pickled = sorted(path.name for path in folder.glob("pytorch_model*.bin") if path.name not in ADAPTER_FILES)
    if safe and pickled:
        found.append(f"{pickled[0]} (model.safetensors is read in its place)")
    return f"{folder}: not read, and not part of what is compiled: {', '.join(found)}" if found else ""


def foreign_prefix(unexpected: Iterable[str], missing: Collection[str], base: str) -> str | None:
    """Return the prefix that hides a model's weights (``module.``), or None when taking it off finds none of them.

    `base` is the name of the encoder below a task model, which a bare encoder's parameters lack.
    """
    wanted = set(missing)
    for key in sorted(unexpected):
        match = PREFIXES.match(key)
        if match and {key[match.end() :], key[match.end() :].removeprefix(f"{base}.")} & wanted:
            return match.group()
    return None


def check_leftovers(folder: Path, model: Any, bare: bool, unexpected: Iterable[str]) -> str:
    """Return one line that names the harmless weights which `model` did not use, "" without any.

    Raises ModelError for weights that change the answer, saying what they look like: all that lie in the encoder, and
    those of a head that nobody knows, unless the encoder alone is asked for (`bare`).
    """
    # Where a weight belongs, and whether anything asked for depends on it
    base = model.base_model
    inside = tuple(f"{name}." for name, _ in base.named_children() if name != "pooler")
    harmless: list[str] = []
    others: list[str] = []
    for key in sorted(unexpected):
        in_encoder = key.startswith(f"{model.base_model_prefix}.") or key.startswith(inside)
        looks = any(re.search(pattern, key) for pattern, _ in KINDS)
        known = HARMLESS.search(key) is not None or (bare and not in_encoder)
        (harmless if known and not looks else others).append(key)
    # One error, or one line
    if others:
        raise ModelError(
            f"{folder}: {len(others)} of its weights are not used by {type(model).__name__} ({_named(others)}); they "
            f"look like {_looks(others)}"
        )
    return f"{folder}: weights this task does not use: {_named(harmless)}" if harmless else ""


def _looks(keys: list[str]) -> str:
    kinds = (kind for pattern, kind in KINDS if any(re.search(pattern, key) for key in keys))
    return next(kinds, OTHER)


def _named(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
