"""The supported model families: where their encoder blocks are and which modules the points belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from qdq.errors import ModelError
from qdq.inject import blocks

# Attributes of an attention module with the query, key and value projections: BERT and its like, DistilBERT, MPNet.
PROJECTIONS = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"))

Replace = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Widths:
    """Paths below one encoder block of what heads and neurons are made of.

    Attributes:
        attention: the module whose children are the projections.
        projections: query, key and value on it.
        output: the linear that reads the heads.
        up, down: the two linears of the feed-forward block.
        heads: attribute of the attention module that counts heads.
    """

    attention: str
    projections: tuple[str, str, str]
    output: str
    up: str
    down: str
    heads: str = "num_attention_heads"


@dataclass(frozen=True)
class Family:
    """The names of one family. Class names are matched exactly.

    Attributes:
        layers: path of the encoder blocks below the base model, as a prefix of module names.
        replacements: transformers class name -> our drop-in, applied wherever that class occurs in the encoder.
        attention: class names (after replacement) that own the four matmul operands.
        query: attribute of the query projection on such a module, where 1/sqrt(d) is folded in.
        residual: class names (after replacement) that own the two residual operands.
        gelu_output: regular expression for the end of the path of the linear that reads the activation function.
        skips: path of each residual add below an encoder block -> paths of the linears that read its residual operand,
            too ("" is the block itself).
        widths: paths of heads and neurons, None when the family cannot be pruned in width.
        token_types: the family has a `token_type_ids` input.
        offset_positions: positions begin behind the padding id, as RoBERTa's do, so the table loses padding_idx + 1.
    """

    layers: str
    replacements: Mapping[str, Replace]
    attention: tuple[str, ...]
    query: str
    residual: tuple[str, ...]
    gelu_output: str
    skips: Mapping[str, tuple[str, ...]]
    widths: Widths | None = None
    token_types: bool = True
    offset_positions: bool = False


def _below(module: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{module}.{name}" for name in names)


def _bert_like(prefix: str, token_types: bool = True, offset_positions: bool = False) -> Family:
    return Family(
        layers="encoder.layer",
        replacements={f"{prefix}SelfOutput": blocks.ResidualOutput, f"{prefix}Output": blocks.ResidualOutput},
        attention=(f"{prefix}SelfAttention",),
        query="query",
        residual=("ResidualOutput",),
        gelu_output=r"(?<!attention)\.output\.dense",
        skips={"attention.output": _below("attention.self", PROJECTIONS[0]), "output": ("intermediate.dense",)},
        widths=Widths("attention.self", PROJECTIONS[0], "attention.output.dense", "intermediate.dense", "output.dense"),
        token_types=token_types,
        offset_positions=offset_positions,
    )


# model_type of the checkpoint's config -> family. Each has a test on a small random checkpoint.
FAMILIES: Mapping[str, Family] = {
    "bert": _bert_like("Bert"),
    "roberta": _bert_like("Roberta", token_types=False, offset_positions=True),
    "xlm-roberta": _bert_like("XLMRoberta", token_types=False, offset_positions=True),
    "camembert": _bert_like("Camembert", token_types=False, offset_positions=True),
    "electra": _bert_like("Electra"),
    "ernie": _bert_like("Ernie"),
    "distilbert": Family(
        layers="transformer.layer",
        replacements={"TransformerBlock": blocks.DistilBertBlock},
        attention=("DistilBertSelfAttention",),
        query="q_lin",
        residual=("ResidualAdd",),
        gelu_output=r"\.ffn\.lin2",
        skips={"attention_add": _below("attention", PROJECTIONS[1]), "ffn_add": ("ffn.lin1",)},
        widths=Widths("attention", PROJECTIONS[1], "attention.out_lin", "ffn.lin1", "ffn.lin2", "n_heads"),
        token_types=False,
    ),
    "albert": Family(
        layers="encoder.albert_layer_groups",
        replacements={"AlbertAttention": blocks.AlbertAttention, "AlbertLayer": blocks.AlbertLayer},
        attention=("AlbertAttention",),
        query="query",
        residual=("AlbertAttention", "AlbertLayer"),
        gelu_output=r"\.ffn_output",
        skips={"attention": _below("attention", PROJECTIONS[0]), "": ("ffn",)},
        widths=Widths("attention", PROJECTIONS[0], "attention.dense", "ffn", "ffn_output"),
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
        skips={"attention": _below("attention.attn", PROJECTIONS[2]), "output": ("intermediate.dense",)},
        token_types=False,
        offset_positions=True,
    ),
}


def skip_readers(family: Family, add: str) -> tuple[str, ...]:
    """Paths of the linears that read the residual operand of the residual add at path `add`, too."""
    ends = [end for end in family.skips if not end or add.endswith(f".{end}")]
    own = max(ends, key=len)
    block = add.removesuffix(f".{own}") if own else add
    return tuple(f"{block}.{reader}" for reader in family.skips[own])


def family_of(model_type: str) -> Family:
    """The family of a checkpoint's `model_type`; a pruned or a QDQBERT model is of the family it comes from.

    Raises ModelError listing the supported ones.
    """
    model_type = model_type.removeprefix("pruned-").replace("qdqbert", "bert")
    if model_type not in FAMILIES:
        raise ModelError(
            f"model family '{model_type}' is not supported; supported families: {', '.join(FAMILIES)}. "
            "Give a checkpoint of one of these"
        )
    return FAMILIES[model_type]
