"""The UIE model: an encoder with a start and an end head per token, for universal information extraction.

Source: Lu et al., arXiv 2203.12277, and PaddleNLP's `UIE`. A prompt and a content go in as a pair; each token gets the
probability of starting an answer and that of ending one::

    model = UIE.from_pretrained("uie-base")     # any PyTorch conversion of uie-base, -medium, -mini, -micro, -nano
    model(**batch).start_prob                   # [B, S]

Conversions name the encoder ``encoder.`` (uie_pytorch, which leaves model_type out of config.json) or by its family
(``ernie.``), and some write LayerNorm's weights as gamma and beta; all are read. ERNIE-M, the encoder of uie-m, is
computed by XLM-RoBERTa's class, see `qdq.loading.convert`. UIE is an Auto class: the config's family decides.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertModel,
    BertPreTrainedModel,
    ErnieConfig,
    ErnieModel,
    ErniePreTrainedModel,
    PreTrainedConfig,
    RobertaConfig,
    RobertaModel,
    RobertaPreTrainedModel,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaPreTrainedModel,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.utils.generic import ModelOutput

from qdq.loading.source import read_config

# Names of the encoder in conversions, as transformers' patterns; {} is the family's own name
ENCODERS = r"^(?:encoder|uie\.encoder|model\.encoder)\.(embeddings|encoder|pooler)\."


@dataclass
class UIEOutput(ModelOutput):
    """Probabilities [B, S] of every token to start and to end an answer; the loss where marks were given."""

    loss: Tensor | None = None
    start_prob: Tensor | None = None
    end_prob: Tensor | None = None


class _Marks(nn.Module):
    """Mixed in before a family's PreTrainedModel: its encoder and two heads of one logit per token."""

    encoder_class: ClassVar[Any]
    base_model_prefix: str
    config: Any

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        setattr(self, self.base_model_prefix, self.encoder_class(config, add_pooling_layer=False))
        self.linear_start = nn.Linear(config.hidden_size, 1)
        self.linear_end = nn.Linear(config.hidden_size, 1)
        self.post_init()  # type: ignore[operator]  # of the PreTrainedModel behind

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **options: Any,
    ) -> UIEOutput:
        """int64 [B, S] inputs to probabilities [B, S]; marks are 1 at tokens that start and end an answer, else 0.

        The loss is the mean of both binary cross-entropies over the tokens that are no padding.
        """
        options.pop("return_dict", None)
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        encoder = getattr(self, self.base_model_prefix)
        states = encoder(input_ids, attention_mask=attention_mask, position_ids=position_ids, **types, **options)[0]
        start, end = self.linear_start(states).squeeze(-1), self.linear_end(states).squeeze(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            sides = ((start, start_positions), (end, end_positions))
            loss = torch.stack([mark_loss(logits, marks, attention_mask) for logits, marks in sides]).mean()
        return UIEOutput(loss, start.sigmoid(), end.sigmoid())

    @classmethod
    def from_pretrained(cls, name: Any, *arguments: Any, **options: Any) -> Any:
        """As transformers', reading the names of every conversion."""
        names = {ENCODERS: rf"{cls.base_model_prefix}.\1.", **(options.pop("key_mapping", None) or {})}
        found = super().from_pretrained(name, *arguments, key_mapping=names, **options)  # type: ignore[misc]
        model = found[0] if isinstance(found, tuple) else found
        model._weight_conversions = None  # transformers would save the names it read, badly turned around
        return found


def mark_loss(logits: Tensor, marks: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy of logits [B, S] to marks of 0 and 1, over positions where `mask` is not 0."""
    weight = torch.ones_like(logits) if mask is None else mask.to(logits.dtype)
    each = functional.binary_cross_entropy_with_logits(logits, marks.to(logits.dtype), reduction="none")
    return (each * weight).sum() / weight.sum().clamp(min=1)


class BertUIE(_Marks, BertPreTrainedModel):  # type: ignore[misc, no-untyped-call]  # loosely typed bases
    """UIE on BERT."""

    encoder_class = BertModel


class ErnieUIE(_Marks, ErniePreTrainedModel):  # type: ignore[misc, no-untyped-call]  # loosely typed bases
    """UIE on ERNIE: uie-base, -medium, -mini, -micro, -nano, -base-en, -medical-base."""

    encoder_class = ErnieModel


class RobertaUIE(_Marks, RobertaPreTrainedModel):  # type: ignore[misc, no-untyped-call]  # loosely typed bases
    """UIE on RoBERTa."""

    encoder_class = RobertaModel


class XLMRobertaUIE(_Marks, XLMRobertaPreTrainedModel):  # type: ignore[misc, no-untyped-call]  # loosely typed bases
    """UIE on XLM-RoBERTa, which computes ERNIE-M, too: uie-m-base, uie-m-large."""

    encoder_class = XLMRobertaModel


class UIE(_BaseAutoModelClass):
    """The UIE of a configuration's family, as transformers' Auto classes are."""

    _model_mapping: Any = _LazyAutoMapping(OrderedDict(), OrderedDict())

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], *model_args: Any, **kwargs: Any
    ) -> Any:
        """As an Auto class of transformers; a folder of uie_pytorch, which names no family, holds ERNIE's."""
        folder = Path(pretrained_model_name_or_path)
        if "config" not in kwargs and folder.is_dir() and "model_type" not in read_config(folder):
            kwargs["config"] = ErnieConfig.from_pretrained(folder)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)


for _config, _model in (
    (BertConfig, BertUIE),
    (ErnieConfig, ErnieUIE),
    (RobertaConfig, RobertaUIE),
    (XLMRobertaConfig, XLMRobertaUIE),
):
    UIE.register(_config, _model, exist_ok=True)  # transformers ignores others of its own configurations
