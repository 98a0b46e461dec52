"""The smallest whole checkpoints there are: a classifier, and an embedder of sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEXTS = ("the film was good", "a bad plot", "great music and a very good actor", "boring")
WORDS = ("the", "a", "film", "plot", "music", "actor", "was", "and", "very", "good", "bad", "great", "boring", "story")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}

LIBRARY = "sentence_transformers.models."
HEAD: Mapping[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": f"{LIBRARY}Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{LIBRARY}Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{LIBRARY}Normalize"},
    ],
    "1_Pooling/config.json": {
        "word_embedding_dimension": 16,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "include_prompt": False,
    },
    "sentence_bert_config.json": {"max_seq_length": 12, "do_lower_case": False},
    "config_sentence_transformers.json": {
        "prompts": {"query": "story: ", "document": ""},
        "default_prompt_name": "query",
        "similarity_fn_name": "cosine",
    },
}


def write_classifier(folder: Path, family: str = "bert") -> Path:
    """A text classifier of two classes with random weights, the same ones every time."""
    return _write(folder, "AutoModelForSequenceClassification", family, id2label={0: "NEG", 1: "POS"})


def write_embedder(folder: Path) -> Path:
    """An encoder with the files of a sentence-transformers head."""
    _write(folder, "AutoModel", "bert")
    for name, content in HEAD.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return folder


def _write(folder: Path, auto: str, family: str, **options: Any) -> Path:
    import torch
    import transformers

    from qdq.loading.model import quiet_transformers

    values = {**SIZES, "vocab_size": 24, "max_position_embeddings": 32, "initializer_range": 0.4, **options}
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(family, **values)
        getattr(transformers, auto).from_config(config).save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    """A lower-casing tokenizer of whole words, which makes token types."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner, model_max_length=32, model_input_names=inputs, **dict(zip(names, SPECIAL, strict=True))
    )
