"""Weights and files a checkpoint holds beyond its model: refused where they change the answer, else named."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from qdq.errors import ModelError
from qdq.loading.files import compare_weights

# Part of the names in checkpoints of other families, whose layers may have the same names and another meaning
FAMILY_NAMES = re.compile(
    r"bert|roberta|electra|ernie|distilbert|albert|mpnet|deberta|longformer|big_bird|nystromformer|mobilebert|"
    r"squeezebert|funnel|xlnet|flaubert|layoutlm|lxmert|megatron_bert|roformer|convbert|ibert|fnet"
)
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
    ("config_setfit.json", "SetFit's settings"),
    ("*/adapter_config.json", "an adapter in a folder of its own"),
    ("*threshold*.json", "thresholds of classes; those of config.json count"),
)
MERGE = "merge it into its base model first (merge_and_unload of peft) and save that with save_pretrained"

# Parts of a name -> what such a weight looks like; the first that fits is said
KINDS = (
    (
        r"encoder\.layers\.\d+\.(self_attn|linear[12]|norm[12])\.",
        "PaddleNLP's names, of which 'python -m qdq.loading.convert FOLDER --out NEW' makes transformers'",
    ),
    (r"lora_|\.ia3_|base_layer|adapter|prompt_embeddings|prefix_encoder", f"an adapter: {MERGE}"),
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


def name_side_files(folder: Path, weights: Sequence[Path], task: str) -> str:
    """Return one line on files that change the answers of the library that reads them and are not read here, else "".

    `weights` are the files that are read. Pickled ones beside them are named unless they hold the same tensors; so is
    a chain of sentence-transformers where `task` is another one, or half of it is there.
    """
    found = [
        f"{path.relative_to(folder)} ({what})"
        for pattern, what in SIDE_FILES
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    ]
    modules, pooling = folder / "modules.json", folder / "1_Pooling" / "config.json"
    if modules.is_file() and task not in ("feature-extraction", "text-classification"):
        found.append(f"{modules.name} (what sentence-transformers computes behind the model, for {task} nothing)")
    if pooling.is_file() and not modules.is_file():
        found.append(f"1_Pooling/{pooling.name} (a pooling, which counts only where modules.json lists it)")
    pickled = sorted(path for path in folder.glob("pytorch_model*.bin") if path.name not in ADAPTER_FILES)
    pickled = [path for path in pickled if path not in weights]
    if pickled and (difference := compare_weights(weights, pickled)):
        found.append(f"{pickled[0].name} ({difference}; {weights[0].name} is what was used)")
    return f"{folder}: not read, and not part of what is compiled: {', '.join(found)}" if found else ""


def foreign_prefix(folder: Path, unexpected: Iterable[str], missing: Collection[str], base: str) -> str | None:
    """Return the prefix that hides a model's weights (``module.``), or None when taking one off finds none of them.

    torch.compile, DataParallel, Lightning modules and wrappers of one's own write such names. `base` is the name of the
    encoder below a task model, which a bare encoder's parameters lack. Raises ModelError where the weights of several
    models lie there, or those of another family.
    """
    # The prefixes by what is missed no more without them
    wanted = {form: key for key in missing for form in (key, key.removeprefix(f"{base}."))}
    found: dict[str, set[str]] = {}
    for key in unexpected:
        cuts = (place + 1 for place, character in enumerate(key) if character == ".")
        for rest, prefix in ((key[cut:].removeprefix(f"{base}."), key[:cut]) for cut in cuts):
            if rest in wanted:
                found.setdefault(prefix, set()).add(wanted[rest])
                break
    best = max(found, key=lambda prefix: len(found[prefix]), default=None)
    if best is None or best == f"{base}.":
        return None
    # One model, and of this family
    twins = [prefix for prefix in found if found[prefix] == found[best]]
    if len(twins) > 1:
        raise ModelError(
            f"{folder}: holds the weights of {len(twins)} models, below {' and '.join(sorted(twins))}; save the one "
            "that is meant with save_pretrained"
        )
    if any(FAMILY_NAMES.fullmatch(part) and part != base for part in best.split(".")):
        raise ModelError(
            f"{folder}: its weights are named as those of a model of another family ({best}) than model_type in "
            "config.json says; set the one that it was trained as"
        )
    return best


def check_leftovers(folder: Path, model: Any, bare: bool, unexpected: Iterable[str]) -> str:
    """Return one line that names the harmless weights which `model` did not use, "" without any.

    Raises ModelError for weights that change the answer, saying what they look like: all that lie in the encoder, and
    those of a head that nobody knows, unless the encoder alone is asked for (`bare`).
    """
    # Where a weight belongs, and whether anything asked for depends on it; a head of this model's own name is its head
    base = model.base_model
    inside = tuple(f"{name}." for name, _ in base.named_children() if name != "pooler")
    heads = tuple(f"{name}." for name in ("classifier", "pre_classifier", "qa_outputs") if hasattr(model, name))
    harmless: list[str] = []
    others: list[str] = []
    for key in sorted(unexpected):
        in_encoder = key.startswith(f"{model.base_model_prefix}.") or key.startswith(inside)
        looks = any(re.search(pattern, key) for pattern, _ in KINDS)
        known = (HARMLESS.search(key) is not None and not key.startswith(heads)) or (bare and not in_encoder)
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
