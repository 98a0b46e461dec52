"""Model classes that are neither transformers' nor ours: a file that tests name with --model-class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertModel, BertPreTrainedModel
from transformers.utils.generic import ModelOutput


class MeanClassifier(BertPreTrainedModel):
    """Bare logits of the mean of all token states, as examples/custom_model.py has them."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.bert(input_ids, attention_mask=mask, token_type_ids=token_type_ids, **options)[0]
        weights = mask.unsqueeze(-1).to(states.dtype)
        logits: Tensor = self.classifier((states * weights).sum(1) / weights.sum(1))
        return logits


class Spans(BertPreTrainedModel):
    """UIE's two heads: the probability of a start and of an end at every token, [B, S] each."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.start, self.end = nn.Linear(config.hidden_size, 1), nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        states = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]
        return torch.sigmoid(self.start(states)[..., 0]), torch.sigmoid(self.end(states)[..., 0])


class Intents(BertPreTrainedModel):
    """Two answers by name: a class of the text and a tag of every token."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.intent, self.slot = nn.Linear(config.hidden_size, 3), nn.Linear(config.hidden_size, 5)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> ModelOutput:
        found = self.bert(input_ids, attention_mask=attention_mask)
        named = {"intent": self.intent(found.pooler_output), "slots": self.slot(found.last_hidden_state)}
        return ModelOutput(named)  # type: ignore[no-untyped-call]


class Misplaced(BertPreTrainedModel):
    """An encoder under a name that nothing knows."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.trunk = BertModel(config, add_pooling_layer=False)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states: Tensor = self.trunk(input_ids, attention_mask=attention_mask)[0]
        return states[:, 0]


class Maskless(BertPreTrainedModel):
    """A forward that padding goes into."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return input_ids.float()
