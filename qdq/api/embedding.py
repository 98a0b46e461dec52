"""Sentence embeddings by an engine, as sentence-transformers' `encode` makes them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qdq.base.config import nearest
from qdq.errors import ConfigError

if TYPE_CHECKING:
    from qdq.api.token_engine import TokenEngine

logger = logging.getLogger(__name__)


def embeddings(
    engine: TokenEngine, texts: Sequence[str], prompts: tuple[str | None, str | None], batch: int
) -> NDArray[np.float32]:
    """Embeddings [N, H] in the order of `texts`; `prompts`: the name of one, and a text of the caller's own.

    Raises ConfigError as `Engine.encode` says.
    """
    from qdq.text.encode import batched

    if engine.task != "feature-extraction":
        raise ConfigError(f"{engine!r}: is no embedding model; call it with arrays, or use transformers.pipeline")
    if batch < 1:
        raise ConfigError(f"batch_size: {batch} must be at least 1")
    # Tokens, with the prompt in front.
    tokenizer, prompt = engine.tokenizer, prompt_text(engine, *prompts)
    encoded = tokenizer([prompt + text for text in texts], truncation=True, return_token_type_ids=True) if texts else {}
    rows = [
        [{name: encoded[name][index] for name in ("input_ids", "attention_mask", "token_type_ids")}]
        for index in range(len(texts))
    ]
    # Batches of similar length, put back in order.
    found: dict[int, NDArray[np.float32]] = {}
    for feed, places in batched(tokenizer, rows, engine.inputs, batch):
        outputs = engine.run(feed)
        values = outputs.get("sentence_embedding")
        pooled = _mean(engine, outputs["last_hidden_state"], feed["attention_mask"]) if values is None else values
        found |= dict(zip(places, pooled, strict=True))
    return np.stack([found[place] for place in range(len(texts))]) if found else np.zeros((0, 0), np.float32)


def prompt_text(engine: TokenEngine, name: str | None, text: str | None) -> str:
    """The text to put in front of every sentence: `text`, else the prompt `name`, else the default one."""
    from qdq.loading.pooling import read_chain

    chain = read_chain(engine.path / "checkpoint")
    default, known = (chain.prompt, chain.texts) if chain else ("", {})
    if text is None and name is not None and name not in known:
        raise ConfigError(f"prompt_name: {engine.name} has no prompt '{name}'; {nearest(name, known)}")
    chosen = text if text is not None else default if name is None else known[name]
    if chain is not None and not chain.include_prompt and chosen != default:
        raise ConfigError(
            f"prompt: the tokens of a prompt do not count in {engine.name}'s embeddings, and its engine was compiled "
            f"to leave out those of {default!r}; compile with another default_prompt_name for this one"
        )
    return chosen


def _mean(engine: TokenEngine, states: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """Mean of token states [B, S, H], which sentence-transformers takes for a model without a head."""
    logger.warning("%s has no modules.json: embeddings are means of its token states", engine.name)
    weights = mask[:, :, None].astype(np.float32)
    return np.asarray((states * weights).sum(1) / np.maximum(weights.sum(1), 1e-9))
