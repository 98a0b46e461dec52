"""Keys of a config.json that change what a model computes: honoured, refused by name, or named when nobody knows them.

A key is honoured when it is a field of the family's config class in transformers, which the model code reads (a test
compares the two). Every other key is one of the tables below, or is named in a warning.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from qdq.base.choices import MULTI_LABEL_TYPE, THRESHOLD_KEYS
from qdq.errors import ModelError
from qdq.inject.relative import FAMILIES, KEY, KINDS
from qdq.loading.source import read_object

# Only what is returned, never its values: the graph's outputs are the task's own.
# Chunks of the feed-forward part save memory in training and would bind lengths to multiples of their size.
RETURNED = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "chunk_size_feed_forward": 0,
}

PROBLEM_TYPES = ("single_label_classification", MULTI_LABEL_TYPE, "regression")

# Which code computes attention, never what: flash attention is not installed everywhere
KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "use_flash_attn")

# Keys, as patterns -> the reason to refuse any value that is not off; the first that fits
REFUSED = (
    (
        "auto_map",
        "the checkpoint has code of its own, which is never run; give one in a format transformers has a class for",
    ),
    (
        "quantization_config|compression_config|quantization|sparsity_config|quant_method",
        "its weights were quantized or packed by another library; give the original floating-point ones",
    ),
    (
        "add_cross_attention|cross_attention_hidden_size",
        "cross-attention reads a second model's states; give an encoder",
    ),
    ("is_encoder_decoder", "it is a pair of encoder and decoder; give an encoder"),
    ("pruned_heads", "heads cut out by transformers are not built again; save it with the heads it had"),
    ("adapters|adapter_.*|lora.*|peft.*|peft_config", "its adapters are not computed; merge them into its weights"),
    (
        r"rope.*|rotary.*|use_rotary.*|alibi.*|use_alibi|relative_attention(?!_num_buckets).*|rel_pos.*|pos_att_type|"
        r"max_relative_positions?|position_biased_input|position_buckets|c2p|p2c|has_(relative|spatial)_attention_bias|"
        r"position_embeddings_type|pos_emb(ed)?_type|positional_encoding_type",
        "the model's class computes absolute positions only and would give other answers",
    ),
    (
        r"attention_window|sliding_window.*|local_attention|global_attn.*|global_attention.*|layer_types|block_size|"
        r"num_random_blocks|num_rand_blocks|sparse.*|num_hashes|lsh_.*",
        "the model's class attends to all tokens and would give other answers",
    ),
    (
        r"num_experts.*|moe_.*|router_.*|.*_glu|glu_.*|mlp_type|feed_forward_type|ffn_type|gated_.*|"
        r"normalize_before|pre_norm|prenorm|norm_first|norm_type|normalization_type|layer_norm_type|rms_norm.*|"
        r"parallel_attention|residual_scale|embed_scale|scale_embedding|embedding_norm|num_key_value_heads|multi_query|"
        r"shared_(key_)?.*query_key|share_att_key|conv_kernel_size|head_ratio|bottleneck.*|intra_bottleneck.*|"
        r"num_feedforward_networks|trigram_input|use_bottleneck.*|head_type",
        "it describes layers of another architecture, which the model's class does not compute",
    ),
    ("crf|use_crf|with_crf", "a CRF behind the classifier is not computed; give a model with a linear head"),
)
# What families of transformers 4 and of Google, and trainers, wrote without effect on a forward pass
HARMLESS = re.compile(
    r"_\w+|model_type|torch_dtype|dtype|torchscript|use_bfloat16|finetuning_task|task_specific_params|tokenizer_class|"
    r"prefix|gradient_checkpointing|output_past|use_cache|use_return_dict|pad_token_id|[a-z]+_token_ids?|forced_\w+|"
    r"directionality|pooler_(fc_size|num_attention_heads|num_fc_layers|size_per_head|type|act|dropout)|"
    r"(down_scale_factor|gap_size|net_structure_type|num_memory_blocks|layers_to_keep)|tie_(weights_?|encoder_decoder)|"
    r"type_vocab_size|vocab_type|initializer_(factor|range)|.*dropout\w*|num_labels|label_names|custom_pipelines|"
    r"pretrained_config|sentence_transformers|keys_to_ignore_at_inference|transformers\.js_config|transformers_weights|"
    r"model_max_length|max_seq_length|max_length|min_length|summary_\w+|position_embedding_type|language|license|tags|"
    r"training_\w+|learning_rate|optimizer|warmup\w*|seed|problem_type|classifier_\w+|id2\w+|\w+2id|torch_\w+|name|author"
)


def check_config(folder: Path, values: dict[str, Any], known: Collection[str]) -> str:
    """Return one line on the keys of config.json that nobody here knows, or that contradict each other, else "".

    `known` are the fields of the family's config class. Raises ModelError for a key of config.json, or of the
    tokenizer's, that asks for what is not computed here.
    """
    # Keys that ask for something else, and those that nobody reads
    file = folder / "config.json"
    strange = []
    read = {*known, *KERNELS, *(THRESHOLD_KEYS if values.get("problem_type") == MULTI_LABEL_TYPE else ())}
    for key, value in values.items():
        if key in RETURNED and not isinstance(value, int | None):
            raise ModelError(f"{file}: {key} is {value!r}; give {RETURNED[key]!r}, or leave it out")
        reason = next((reason for keys, reason in REFUSED if value and re.fullmatch(keys, key)), None)
        if reason:
            raise ModelError(f"{file}: {key} is not supported: {reason}")
        if value and key not in read and not HARMLESS.fullmatch(key) and not _generation(key):
            strange.append(key)
    # Values and files that do
    _check_positions(file, values)
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file() and _has_code(tokenizer):
        raise ModelError(
            f"{tokenizer}: auto_map is not supported: the tokenizer has code of its own, which is never run"
        )
    kind = values.get("problem_type")
    if kind is not None and kind not in PROBLEM_TYPES:
        raise ModelError(f"{file}: problem_type is {kind!r}; give {', '.join(PROBLEM_TYPES)}, or leave it out")
    # One line
    unread = "keys that the model's class does not read, so they change nothing here"
    said = [f"{unread}: {', '.join(sorted(strange))}"] if strange else []
    said += [line] if (line := _names_apart(values)) else []
    return f"{file}: {'; '.join(said)}" if said else ""


def _names_apart(values: dict[str, Any]) -> str:
    """Say that the two tables of class names contradict each other, "" where they do not."""
    names, numbers = values.get("id2label"), values.get("label2id")
    if not isinstance(names, dict) or not isinstance(numbers, dict):
        return ""
    written = {str(name): str(number) for number, name in names.items()}
    apart = [name for name, number in numbers.items() if written.get(str(name), str(number)) != str(number)]
    if not apart:
        return ""
    return (
        f"id2label calls class {written[str(apart[0])]} '{apart[0]}' and label2id class {numbers[apart[0]]}; id2label "
        "is used, as in transformers' pipelines"
    )


def _check_positions(file: Path, values: dict[str, Any]) -> None:
    """Raise ModelError for positions that the family's class does not compute."""
    kind = values.get(KEY)
    relative = kind in KINDS and str(values.get("model_type")).removeprefix("pruned-") in FAMILIES
    if kind not in (None, "absolute") and not relative:
        raise ModelError(
            f"{file}: {KEY} '{kind}' is not supported for {values.get('model_type')}: positions would be absolute and "
            f"answers others; give a checkpoint with absolute ones (or {' or '.join(KINDS)}, of {', '.join(FAMILIES)})"
        )


def _generation(key: str) -> bool:
    """True for a key of text generation, which transformers 4 wrote into every config.json."""
    from transformers import GenerationConfig

    return hasattr(GenerationConfig(), key)  # type: ignore[no-untyped-call]


def _has_code(tokenizer: Path) -> bool:
    try:
        return bool(read_object(tokenizer).get("auto_map"))
    except ModelError:
        return False  # the tokenizer's own loading says what is wrong with the file
