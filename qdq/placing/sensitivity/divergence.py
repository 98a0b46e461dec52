"""How far a model's answers are from the floating-point model's, as one number per data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOKEN_LEVEL = ("token-classification", "fill-mask", "language-modeling")


@dataclass
class Divergence:
    """Running mean over answers (texts, tokens, or spans), and the squared error of the outputs beside it.

    `kind` is what one answer contributes: ``kl`` nats, Kullback-Leibler from floating point's probabilities to the
    candidate's, at the temperature that gives floating point's logits a standard deviation of 1 (arXiv 1503.02531): a
    fine-tuned model is certain of its own training texts, and at temperature 1 hardly any error would show there;
    ``cosine``, 1 - cosine of embeddings; ``squared``, squared error of a single logit.
    """

    kind: str = "kl"
    total: float = 0.0
    answers: int = 0
    squared: float = 0.0
    elements: int = 0

    def value(self) -> float:
        """Mean divergence per answer, 0 for equal outputs."""
        return self.total / max(self.answers, 1)

    def mse(self) -> float:
        """Mean squared error of the outputs' elements, padding left out."""
        return self.squared / max(self.elements, 1)

    def add(self, task: str, reference: Sequence[Tensor], candidate: Sequence[Tensor], mask: Tensor) -> None:
        """Include one batch: outputs in the order of the task's, and attention_mask [B, S] (or [B, N, S])."""
        keep = mask.bool()
        for expected, actual in zip(reference, candidate, strict=True):
            if task == "question-answering":
                floor = torch.where(keep, 0.0, -1.0e4)  # padding has no probability
                temperature = _spread(
                    expected - (expected * keep).sum(1, keepdim=True) / keep.sum(1, keepdim=True), keep
                )
                self._probabilities(expected / temperature + floor, actual / temperature + floor)
                expected, actual = expected[keep], actual[keep]
            elif task == "feature-extraction":
                if expected.dim() == 3:
                    expected, actual = expected[keep], actual[keep]
                self.kind = "cosine"
                self._count(1 - torch.nn.functional.cosine_similarity(expected, actual, dim=-1))
            elif expected.shape[-1] == 1:
                self.kind = "squared"
                self._count((expected - actual).square().flatten())
            else:
                if task in TOKEN_LEVEL:
                    expected, actual = expected[keep], actual[keep]
                temperature = _spread(expected - expected.mean(-1, keepdim=True))
                self._probabilities(expected / temperature, actual / temperature)
            self.squared += float((expected - actual).double().square().sum())
            self.elements += expected.numel()

    def _probabilities(self, expected: Tensor, actual: Tensor) -> None:
        log_p, log_q = expected.double().log_softmax(-1), actual.double().log_softmax(-1)
        self._count((log_p.exp() * (log_p - log_q)).sum(-1))

    def _count(self, each: Tensor) -> None:
        self.total += float(each.double().clamp(min=0).sum())
        self.answers += each.numel()


def _spread(centered: Tensor, keep: Tensor | None = None) -> float:
    """Standard deviation of logits centered per answer, 1 when there is none."""
    values = centered if keep is None else centered[keep]
    return float(values.double().square().mean().sqrt()) or 1.0
