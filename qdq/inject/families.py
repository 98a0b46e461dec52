"""The supported model families: where their encoder blocks are and which modules the points belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from qdq.errors import ModelError
from qdq.inject import blocks

Replace = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Family:
    """How one family names things. Class names are without the family prefix's variants, matched exactly.

    Attributes:
        layers: path of the encoder blocks below the base model, as a prefix of module names.
        replacements: transformers class name -> our drop-in, applied wherever that class occurs in the encoder.
        attention: class names (after replacement) that own the four matmul operands.
        query: attribute of the query projection on such a module, where 1/sqrt(d) is folded in.
        residual: class names (after replacement) that own the two residual operands.
        gelu_output: regular expression for the end of the path of the linear that reads the activation function.
        token_types: whether the family has a `token_type_ids` input.
        position_offset: positions the embedding table loses to padding (RoBERTa starts at padding_idx + 1).
    """

    layers: str
    replacements: Mapping[str, Replace]
    attention: tuple[str, ...]
    query: str
    residual: tuple[str, ...]
    gelu_output: str
    token_types: bool = True
    position_offset: int = 0


def _bert_like(prefix: str, token_types: bool = True, position_offset: int = 0) -> Family:
    return Family(
        layers="encoder.layer",
        replacements={f"{prefix}SelfOutput": blocks.ResidualOutput, f"{prefix}Output": blocks.ResidualOutput},
        attention=(f"{prefix}SelfAttention",),
        query="query",
        residual=("ResidualOutput",),
        gelu_output=r"(?<!attention)\.output\.dense",
        token_types=token_types,
        position_offset=position_offset,
    )


# model_type of the checkpoint's config -> family. Each has a test on a small random checkpoint.
FAMILIES: Mapping[str, Family] = {
    "bert": _bert_like("Bert"),
    "roberta": _bert_like("Roberta", token_types=False, position_offset=2),
    "xlm-roberta": _bert_like("XLMRoberta", token_types=False, position_offset=2),
    "camembert": _bert_like("Camembert", token_types=False, position_offset=2),
    "electra": _bert_like("Electra"),
    "ernie": _bert_like("Ernie"),
    "distilbert": Family(
        layers="transformer.layer",
        replacements={"TransformerBlock": blocks.DistilBertBlock},
        attention=("DistilBertSelfAttention",),
        query="q_lin",
        residual=("ResidualAdd",),
        gelu_output=r"\.ffn\.lin2",
        token_types=False,
    ),
    "albert": Family(
        layers="encoder.albert_layer_groups",
        replacements={"AlbertAttention": blocks.AlbertAttention, "AlbertLayer": blocks.AlbertLayer},
        attention=("AlbertAttention",),
        query="query",
        residual=("AlbertAttention", "AlbertLayer"),
        gelu_output=r"\.ffn_output",
    ),
    "mpnet": Family(
        layers="encoder.layer",
        replacements={
            "MPNetSelfAttention": blocks.MPNetSelfAttention,
            "MPNetAttention": blocks.MPNetAttention,
            "MPNetOutput": blocks.ResidualOutput,
        },
        attention=("MPNetSelfAttention",),
        query="q",
        residual=("MPNetAttention", "ResidualOutput"),
        gelu_output=r"\.output\.dense",
        token_types=False,
        position_offset=2,
    ),
}


def family_of(model_type: str) -> Family:
    """The family of a checkpoint's `model_type`. Raises ModelError listing the supported ones."""
    if model_type not in FAMILIES:
        raise ModelError(
            f"model family '{model_type}' is not supported; supported families: {', '.join(FAMILIES)}. "
            "Give a checkpoint of one of these"
        )
    return FAMILIES[model_type]
