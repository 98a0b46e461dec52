"""Encoder blocks with quantized residual adds: drop-in replacements for the few modules that do the adding.

Each takes over the children of the transformers module it replaces, under the same names, so parameter names and
checkpoints stay as they are. Quantizer attributes start as None (not placed) and are filled by `inject`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import apply_chunking_to_forward

from qdq.inject.attention import attention_forward, attention_scores, weigh_values
from qdq.inject.quantizer import TensorQuantizer, Treated, quantize


def adopt(target: nn.Module, source: nn.Module) -> None:
    """Move the children of `source` under `target` and take its training mode."""
    for name, child in source.named_children():
        setattr(target, name, child)
    target.train(source.training)


class Residual(Treated):
    """A module that adds ``local + residual``, with a quantizer on each operand.

    `_channel_scale` [H] (`qdq.calibrate.treatments.scale_residuals`) divides both operands before their quantizers
    and multiplies the sum. The linear that computes `local` does its division in its rows.

    `_skip_factor` [H] (`qdq.calibrate.treatments.share_skips`) multiplies the residual operand before its quantizer and
    divides it behind: the smoothing of the linears that read the same tensor. An add has one of the two at most.
    """

    TREATMENTS = ("_channel_scale", "_skip_factor")
    _channel_scale: Tensor | None
    _skip_factor: Tensor | None

    def __init__(self, source: nn.Module | None = None) -> None:
        super().__init__()
        self.add_local_input_quantizer: nn.Module | None = None
        self.add_residual_input_quantizer: nn.Module | None = None
        self.observer: Callable[[Tensor, Tensor], None] | None = None  # sees the operands of every add
        for name in self.TREATMENTS:
            self.treat(name, None)
        if source is not None:
            adopt(self, source)

    @property
    def quantized_operands(self) -> dict[str, TensorQuantizer]:
        """The placed quantizers, by operand."""
        points = {"local": self.add_local_input_quantizer, "residual": self.add_residual_input_quantizer}
        return {name: point for name, point in points.items() if isinstance(point, TensorQuantizer)}

    def add(self, local: Tensor, residual: Tensor) -> Tensor:
        """[B, S, H] + [B, S, H]."""
        if self.observer is not None:
            self.observer(local, residual)
        if self._channel_scale is not None:
            residual = residual / self._channel_scale
        total = quantize(self.add_local_input_quantizer, local) + self._skip(residual)
        return total if self._channel_scale is None else total * self._channel_scale

    def _skip(self, residual: Tensor) -> Tensor:
        """[B, S, H], quantized as the linears that read it quantize it."""
        if self._skip_factor is None:
            return quantize(self.add_residual_input_quantizer, residual)
        return quantize(self.add_residual_input_quantizer, residual * self._skip_factor) / self._skip_factor


class ResidualAdd(Residual):
    """The add alone, as a child of a block whose source adds inline."""

    def forward(self, local: Tensor, residual: Tensor) -> Tensor:
        """[B, S, H] + [B, S, H]."""
        return self.add(local, residual)


class ResidualOutput(Residual):
    """BERT's SelfOutput and Output: dense, dropout, add, LayerNorm. Children: dense, dropout, LayerNorm."""

    dense: nn.Module
    dropout: nn.Module
    LayerNorm: nn.Module

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """[B, S, in], [B, S, H] to [B, S, H]."""
        normalized: Tensor = self.LayerNorm(self.add(self.dropout(self.dense(hidden_states)), input_tensor))
        return normalized


class DistilBertBlock(nn.Module):
    """DistilBERT's TransformerBlock. Children: attention, sa_layer_norm, ffn, output_layer_norm, and the two adds."""

    attention: nn.Module
    sa_layer_norm: nn.Module
    ffn: nn.Module
    output_layer_norm: nn.Module

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        adopt(self, source)
        self.attention_add = ResidualAdd()
        self.ffn_add = ResidualAdd()

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """[B, S, H] to [B, S, H]."""
        attention, _ = self.attention(hidden_states, attention_mask=attention_mask, **kwargs)
        attention = self.sa_layer_norm(self.attention_add(attention, hidden_states))
        output: Tensor = self.output_layer_norm(self.ffn_add(self.ffn(attention), attention))
        return output


class AlbertAttention(Residual):
    """ALBERT's attention block: projections, attention, dense, add, LayerNorm."""

    query: nn.Module
    key: nn.Module
    value: nn.Module
    attention_dropout: nn.Dropout
    dense: nn.Module
    output_dropout: nn.Module
    LayerNorm: nn.Module

    def __init__(self, source: nn.Module) -> None:
        super().__init__(source)
        self.config = source.config
        self.attention_head_size: int = source.attention_head_size  # type: ignore[assignment]
        self.scaling: float = source.scaling  # type: ignore[assignment]
        self.is_causal = False

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """[B, S, H] to ([B, S, H], probabilities)."""
        query, key, value = (
            split_heads(projection(hidden_states), self.attention_head_size)
            for projection in (self.query, self.key, self.value)
        )
        dropout = self.attention_dropout.p
        context, probabilities = attention_forward(self, query, key, value, attention_mask, self.scaling, dropout)
        projected = self.output_dropout(self.dense(context.flatten(2)))
        return self.LayerNorm(self.add(projected, hidden_states)), probabilities


class AlbertLayer(Residual):
    """ALBERT's layer: attention, feed-forward, add, LayerNorm; one instance serves every depth of its group."""

    attention: nn.Module
    ffn: nn.Module
    activation: nn.Module
    ffn_output: nn.Module
    full_layer_layer_norm: nn.Module

    def __init__(self, source: nn.Module) -> None:
        super().__init__(source)
        self.chunk_size: int = source.chunk_size_feed_forward  # type: ignore[assignment]

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """[B, S, H] to [B, S, H]."""
        attention, _ = self.attention(hidden_states, attention_mask, **kwargs)
        local = apply_chunking_to_forward(self.feed_forward, self.chunk_size, 1, attention)
        output: Tensor = self.full_layer_layer_norm(self.add(local, attention))
        return output

    def feed_forward(self, attention: Tensor) -> Tensor:
        """[B, S, H] to [B, S, H]."""
        output: Tensor = self.ffn_output(self.activation(self.ffn(attention)))
        return output


class MPNetSelfAttention(nn.Module):
    """MPNet's attention, which adds a relative position bias to the scores and does not use the interface."""

    q: nn.Module
    k: nn.Module
    v: nn.Module
    o: nn.Module
    dropout: nn.Dropout

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        adopt(self, source)
        self.attention_head_size: int = source.attention_head_size  # type: ignore[assignment]
        self.scaling = 1.0 / math.sqrt(self.attention_head_size)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        """[B, S, H] to ([B, S, H],) or with the probabilities."""
        query, key, value = (
            split_heads(projection(hidden_states), self.attention_head_size) for projection in (self.q, self.k, self.v)
        )
        scores = attention_scores(self, query, key)
        if self.scaling != 1.0:
            scores = scores * self.scaling
        for bias in (position_bias, attention_mask):
            scores = scores if bias is None else scores + bias
        context, probabilities = weigh_values(self, scores, value, self.dropout.p)
        output = self.o(context.flatten(2))
        return (output, probabilities) if output_attentions else (output,)


class MPNetAttention(Residual):
    """MPNet's attention block: attention, dropout, add, LayerNorm."""

    attn: nn.Module
    dropout: nn.Module
    LayerNorm: nn.Module

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, ...]:
        """[B, S, H] to ([B, S, H], …)."""
        attended = self.attn(hidden_states, attention_mask, **kwargs)
        return (self.LayerNorm(self.add(self.dropout(attended[0]), hidden_states)), *attended[1:])


# transformers class name -> the `approximate` of the torch module that computes the same as one Gelu node; written out
# in Python (gelu_new is ALBERT's default) it becomes a chain of Pow, Mul, Add and Tanh in the graph.
GELUS: Mapping[str, str] = {
    "GELUActivation": "none",
    "NewGELUActivation": "tanh",
    "FastGELUActivation": "tanh",
    "AccurateGELUActivation": "tanh",
    "GELUTanh": "tanh",
}


def replace_gelus(model: nn.Module) -> None:
    """Swap every GELU module of `model` for torch's own; equal up to float32 rounding."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child).__name__ in GELUS:
                setattr(module, name, nn.GELU(approximate=GELUS[type(child).__name__]))


def split_heads(x: Tensor, head_size: int) -> Tensor:
    """[B, S, H] to [B, heads, S, head_size]."""
    return x.view(*x.shape[:-1], -1, head_size).transpose(1, 2)
