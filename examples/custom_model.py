"""Compress a model class and data of your own, with a loss and an evaluation that you pass in.

    python examples/custom_model.py --output_dir out --strategy dynabert+ptq --width_mult_list 1/2 --max_steps 20

The model here classifies by the mean of all token states, is built on the bundled encoder and returns bare logits;
its data is a TensorDataset. Replace `MeanClassifier`, `data`, `criterion` and `evaluate`.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from command_line import ScriptParser
from torch.utils.data import TensorDataset
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertPreTrainedModel

from qdq.base.edge import run_script
from qdq.compress import CompressionArguments, CompressionTrainer
from qdq.loading.source import resolve

TEXTS = ("a fine film", "a dull film", "great acting", "poor acting", "we loved it", "we hated it") * 8
LABELS = (1, 0, 1, 0, 1, 0) * 8


class MeanClassifier(BertPreTrainedModel):
    """BERT, the mean of its token states, and one linear layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.classifier = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """[B, S] to logits [B, classes]."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.bert(input_ids, attention_mask=mask, token_type_ids=token_type_ids, **options)[0]
        weights = mask.unsqueeze(-1).to(states.dtype)
        logits: torch.Tensor = self.classifier((states * weights).sum(1) / weights.sum(1))
        return logits


def data(tokenizer: Any) -> TensorDataset:
    """Tuples of tensors in the order of the model's inputs, the label last."""
    tokens = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    return TensorDataset(tokens["input_ids"], tokens["attention_mask"], tokens["token_type_ids"], torch.tensor(LABELS))


def criterion(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A scalar loss of the logits."""
    return torch.nn.functional.cross_entropy(logits, labels)


def evaluate(model: torch.nn.Module, loader: Any) -> float:
    """One number, larger is better."""
    right = total = 0
    with torch.no_grad():
        for batch in loader:
            logits = model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
            right += int((logits.argmax(-1) == batch["labels"]).sum())
            total += len(batch["labels"])
    return right / total


def main(arguments: Sequence[str] | None = None) -> Any:
    """Compress; returns the CompressionResult."""
    (args,) = ScriptParser(dataclass_types=CompressionArguments, description=__doc__).read(arguments)
    folder, _ = resolve(None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = MeanClassifier(AutoModel.from_pretrained(folder).config)
    model.bert.load_state_dict(AutoModel.from_pretrained(folder).state_dict(), strict=False)
    samples = data(tokenizer)
    trainer = CompressionTrainer(
        model=model, args=args, train_dataset=samples, eval_dataset=samples, tokenizer=tokenizer, criterion=criterion
    )
    return trainer.compress(custom_evaluate=evaluate)


if __name__ == "__main__":
    sys.exit(run_script(main))
