"""Relative positions of BERT-like models, `relative_key` and `relative_key_query`: classes that compute them.

transformers 5 has no code for them any more. The floating-point class adds the table of distances to every attention
of transformers' own class and scores as transformers 4.57 wrote it (Shaw et al., arXiv 1803.02155; Huang et al., arXiv
2009.13658); an injected model computes the same with one multiplication per layer by `position_scores`. Parameters
have the names that checkpoints have.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import eager_mask

KINDS = ("relative_key", "relative_key_query")
FAMILIES = (
    "albert",
    "bert",
    "camembert",
    "electra",
    "ernie",
    "roberta",
    "xlm-roberta",
)  # that transformers 4 had them in
KEY = "position_embedding_type"
TABLE = "distance_embedding"  # attribute of an attention module: [2 * positions - 1, head size]
IMPLEMENTATION = "qdq-relative"  # value of config._attn_implementation on a floating-point model


def relative_kind(config: Any) -> str | None:
    """`relative_key` or `relative_key_query`, or None for a model with absolute positions."""
    kind = getattr(config, KEY, None)
    return kind if kind in KINDS else None


def model_class(auto: Any, config: PreTrainedConfig) -> Any:
    """Return what builds a task's model of `config`: the Auto class, or a class with relative positions."""
    if relative_kind(config) is None:
        return auto
    return relative_class(auto._model_mapping[type(config)])


@cache
def relative_class(original: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return a class of the same name as `original` whose attention scores add relative positions."""
    attributes = {"__module__": __name__, "__doc__": f"{original.__name__}, with relative positions."}
    return cast(type[PreTrainedModel], type(original.__name__, (Relative, original), attributes))


class NoPositions(nn.Module):
    """In place of the table of absolute positions, which a model with relative ones does not add."""

    def forward(self, position_ids: Tensor) -> Tensor:
        """int64 [1, S] or [B, S] to a zero that broadcasts."""
        return torch.zeros((), device=position_ids.device)


class Relative:
    """Mixed in before a transformers class: builds that class, then gives its attentions their table of distances."""

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)  # type: ignore[call-arg]  # the transformers class behind
        AttentionInterface.register(IMPLEMENTATION, reference_attention)
        AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)
        model = cast(PreTrainedModel, self)
        for module in model.modules():
            if hasattr(module, "attention_head_size") and hasattr(module, "query"):
                rows, size = 2 * config.max_position_embeddings - 1, cast(int, module.attention_head_size)
                setattr(module, TABLE, nn.Embedding(rows, size))
            if hasattr(module, "position_embeddings"):
                module.position_embeddings = NoPositions()
        model.config._attn_implementation = IMPLEMENTATION


def _after_scaling(module: nn.Module) -> bool:
    """True for ALBERT, whose scores transformers divided by sqrt(d) before it added positions; the others after."""
    return str(cast(Any, module).config.model_type).removeprefix("pruned-") == "albert"


def reference_attention(  # noqa: PLR0913  # the signature is transformers' attention interface
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention with relative positions as transformers 4.57 computes it: [B, heads, S, d] to [B, S, heads, d].

    Written out with one vector per pair of tokens, [S, S, d]: the measure for `position_scores`, which needs none.
    """
    # A vector for every pair of tokens, by their distance
    length, table = query.size(2), cast(nn.Embedding, getattr(module, TABLE))
    places = torch.arange(length, device=query.device)
    vectors = table(places[:, None] - places[None, :] + (table.num_embeddings - 1) // 2)
    positions = torch.einsum("bhld,lrd->bhlr", query, vectors)
    if relative_kind(cast(Any, module).config) == "relative_key_query":
        positions = positions + torch.einsum("bhrd,lrd->bhlr", key, vectors)
    # Scores, where they are added
    scale = query.size(-1) ** -0.5
    scores = torch.matmul(query, key.transpose(-1, -2))
    scores = scores * scale + positions if _after_scaling(module) else (scores + positions) * scale
    scores = scores if attention_mask is None else scores + attention_mask
    probabilities = nn.functional.dropout(scores.softmax(-1), p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities


def position_scores(module: nn.Module, query: Tensor, key: Tensor, scaling: float) -> Tensor | None:
    """Term that relative positions add to query times key, [B, heads, S, S]; None for a module without them.

    The sum is multiplied by `scaling` afterwards; it is 1 where 1/sqrt(d) is in the query already.
    """
    table = getattr(module, TABLE, None)
    if table is None:
        return None
    root = query.size(-1) ** 0.5
    after = _after_scaling(module)
    rows = torch.cat((table.weight, torch.zeros_like(table.weight[:1])))  # one more than distances, for `_by_distance`
    distances = torch.cat((table.weight.flip(0), rows[-1:]))
    scores = _by_distance(query, distances * root if after else distances)
    if relative_kind(cast(Any, module).config) == "relative_key_query":
        factor = 1.0 / scaling if after else 1.0 / (root * scaling)
        scores = scores + _by_distance(key, rows * factor).transpose(-1, -2)
    return scores


def _by_distance(states: Tensor, table: Tensor) -> Tensor:
    """[B, heads, S, d] times the row of `table` for the distance of every pair: [B, heads, i, j] by j - i.

    `table` [2 P, d] has the row of distance n at n + P - 1. Each state meets each distance once, and the rows of the
    result are shifted into place (the relative shift of Transformer-XL, arXiv 1901.02860): row i of [S, 2 S] holds its
    distances from -S on, so in memory the wanted ones are those of [S, 2 S - 1] from S - 1 on.
    """
    length, half = states.size(-2), table.size(0) // 2
    products = torch.matmul(states, table[half - length : half + length].transpose(-1, -2))
    flat = products.flatten(-2)[..., length - 1 : length - 1 + length * (2 * length - 1)]
    shifted = flat.reshape(*flat.shape[:-1], length, 2 * length - 1)
    return shifted[..., :length]
