"""Configuration and tokenizer of a compiled model, from its calibrated checkpoint; no weight is read."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

SUPPORTED = (
    *("AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification"),
    *("AutoModelForQuestionAnswering", "AutoModelForMaskedLM"),
)


def read_configuration(checkpoint: Path, engine: type) -> PreTrainedConfig:
    """The configuration of a checkpoint; makes `engine` known to transformers' pipelines on the way."""
    from transformers import AutoConfig

    import qdq.loading.pruned  # noqa: F401  # AutoConfig then knows width-pruned models
    from qdq.loading.model import quiet_transformers

    introduce(engine)
    with quiet_transformers():
        config: PreTrainedConfig = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    return config


@functools.cache
def introduce(engine: type) -> None:
    """Let transformers know a class as a model: its pipelines log an error about every class they do not know.

    By the Auto classes' own `register`, under a configuration that no checkpoint has.
    """
    import transformers

    class EngineConfig(transformers.PreTrainedConfig):  # type: ignore[no-untyped-call]
        model_type = "qdq-engine"

    for name in SUPPORTED:
        getattr(transformers, name).register(EngineConfig, engine, exist_ok=True)


def read_tokenizer(checkpoint: Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, prepared as a compile prepares it. Raises ModelError for a damaged one."""
    from qdq.loading.model import quiet_transformers
    from qdq.loading.pooling import read_chain
    from qdq.loading.tokenizer import load_tokenizer

    with quiet_transformers():
        tokenizer = load_tokenizer(checkpoint, config)
    chain = read_chain(checkpoint)
    if chain is not None:
        chain.prepare(tokenizer)
    tokenizer.model_max_length = min(tokenizer.model_max_length, _positions(config))
    return tokenizer


def _positions(config: PreTrainedConfig) -> int:
    """Most tokens that the table of positions holds; RoBERTa's begin behind the padding id."""
    from qdq.inject.families import family_of

    offset = config.pad_token_id + 1 if family_of(config.model_type).offset_positions else 0
    return int(config.max_position_embeddings) - offset
