"""Attention with quantized matmul operands, reached through transformers' own attention interface.

The four quantizers are attributes of the attention module (QDQBERT's names), and so is a head mask; the function below
is registered under one name together with its mask function, so no model source is patched and other models in the
process are untouched.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from qdq.errors import ModelError
from qdq.inject.quantizer import quantize
from qdq.inject.relative import position_scores

IMPLEMENTATION = "qdq"  # value of config._attn_implementation on an injected model

# Large enough to erase a masked position after softmax, small enough for FP16 (float32's minimum is not).
MASKED_SCORE = -1.0e4

# Attribute of an attention module: a factor per head, [heads]. transformers 5 accepts `head_mask` and ignores it.
HEAD_MASK = "head_mask"


def register() -> None:
    """Make the implementation known to transformers; calling it again changes nothing."""
    AttentionInterface.register(IMPLEMENTATION, attention_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, additive_mask)


def attention_forward(  # noqa: PLR0913  # the signature is transformers' attention interface
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention over [B, heads, S, d] operands; returns ([B, S, heads, d], probabilities).

    `scaling` is 1.0 on an injected model: 1/sqrt(d) was folded into the query projection.
    """
    scores = attention_scores(module, query, key)
    positions = position_scores(module, query, key, 1.0 if scaling is None else scaling)
    if positions is not None:
        scores = scores + positions
    if scaling is not None and scaling != 1.0:
        scores = scores * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    return weigh_values(module, scores, value, dropout)


def attention_scores(module: nn.Module, query: Tensor, key: Tensor) -> Tensor:
    """First attention matmul with its two operand quantizers: [B, heads, S, S]."""
    query = quantize(getattr(module, "matmul_q_input_quantizer", None), query)
    key = quantize(getattr(module, "matmul_k_input_quantizer", None), key)
    return torch.matmul(query, key.transpose(-1, -2))


def weigh_values(module: nn.Module, scores: Tensor, value: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """Softmax, the head mask when there is one, and the second attention matmul with its two operand quantizers."""
    probabilities = nn.functional.softmax(scores, dim=-1)
    dropped = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    mask: Tensor | None = getattr(module, HEAD_MASK, None)
    if mask is not None:
        dropped = dropped * mask.view(-1, 1, 1)
    dropped = quantize(getattr(module, "matmul_a_input_quantizer", None), dropped)
    value = quantize(getattr(module, "matmul_v_input_quantizer", None), value)
    return torch.matmul(dropped, value).transpose(1, 2).contiguous(), probabilities


def additive_mask(
    attention_mask: Tensor | None = None,
    mask_function: Any = bidirectional_mask_function,
    q_length: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """Additive score mask: [B, 1, 1, S] for an encoder, [B, 1, S, S] for a causal language-model head.

    transformers' own eager mask is [B, 1, S, S] in both cases and adds GatherND, Range and Where to the graph.
    Raises ModelError for any other pattern (packed sequences, sliding windows).
    """
    if mask_function not in (bidirectional_mask_function, causal_mask_function):
        raise ModelError("attention over packed sequences or windows is not supported; pass an attention_mask [B, S]")
    allowed = None if attention_mask is None else attention_mask[:, None, None, :].bool()
    if mask_function is causal_mask_function:
        positions = torch.arange(q_length, device=device)
        causal = (positions[None, :] <= positions[:, None])[None, None]
        allowed = causal if allowed is None else allowed & causal
    if allowed is None:
        return None
    # Where, not (1 - mask) * constant: OpenVINO takes the cast mask for a quantized tensor and moves its scale
    # through the score addition, which costs up to 6e-4 per score.
    return torch.where(allowed, 0.0, MASKED_SCORE).to(dtype)
