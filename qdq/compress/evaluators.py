"""The built-in evaluators, chosen by model class: accuracy, entity F1, and SQuAD's F1 over tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdq.compress.datasets import IGNORED_LABEL, Batches, labels_of, without_labels
from qdq.errors import ConfigError, DataError

MAX_ANSWER_LENGTH = 30  # tokens, as in run_squad
CustomEvaluate = Callable[[nn.Module, Any], Any]


def builtin_evaluator(model: PreTrainedModel) -> tuple[str, Callable[[nn.Module, Batches], float]]:
    """(metric name, evaluator) for the class of `model`. Raises ConfigError for a class that has none."""
    name = type(model).__name__
    labels = model.config.num_labels or 0
    if name.endswith("ForSequenceClassification") and labels > 1:
        return "accuracy", accuracy
    if name.endswith("ForTokenClassification"):
        tags = [str((model.config.id2label or {}).get(index)) for index in range(labels)]  # type: ignore[call-overload]
        if all(tag == "O" or tag[:2] in ("B-", "I-", "E-", "S-", "L-", "U-") for tag in tags):
            return "entity F1", lambda model, batches: entity_f1(model, batches, tags)
        raise ConfigError(
            f"{name}: its id2label ({', '.join(tags[:3])}, ...) has no B-/I- tags to find entities by; set "
            "model.config.id2label, or pass custom_evaluate to compress()"
        )
    if name.endswith("ForQuestionAnswering"):
        return "span F1", lambda model, batches: span_scores(model, batches)["f1"]
    raise ConfigError(
        f"{name}: has no built-in evaluator (there are accuracy, entity F1 and SQuAD's F1, for sequence "
        "classification, token classification and question answering); pass custom_evaluate to compress()"
    )


def logits_of(output: Any) -> Any:
    """The logits of a model output: a tensor, or (start, end). Custom models may return them bare."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "start_logits"):
        return output.start_logits, output.end_logits
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, (tuple, list)):
        return output[0] if len(output) == 1 else tuple(output)
    raise ConfigError(
        f"the model returns {type(output).__name__}, which has no logits; return logits or a tuple of them"
    )


def _predictions(model: nn.Module, batches: Batches) -> Iterable[tuple[dict[str, Tensor], Any]]:
    """(batch, logits) for every batch, in eval mode and without gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                yield batch, logits_of(model(**without_labels(batch)))
    finally:
        model.train(training)


def accuracy(model: nn.Module, batches: Batches) -> float:
    """Share of samples whose largest logit is the label."""
    right = total = 0
    for batch, logits in _predictions(model, batches):
        labels = labels_of(batch)
        right += int((logits.argmax(-1) == labels).sum())
        total += len(labels)
    return right / total


def entity_f1(model: nn.Module, batches: Batches, tags: list[str]) -> float:
    """Entity-level micro F1 as conlleval computes it (seqeval); positions labelled -100 do not count."""
    from seqeval.metrics import f1_score

    expected: list[list[str]] = []
    predicted: list[list[str]] = []
    for batch, logits in _predictions(model, batches):
        labels = labels_of(batch)
        assert isinstance(labels, Tensor)  # token classification has one label tensor
        for row, guess in zip(labels.tolist(), logits.argmax(-1).tolist(), strict=True):
            kept = [(tags[label], tags[best]) for label, best in zip(row, guess, strict=True) if label != IGNORED_LABEL]
            expected.append([label for label, _ in kept])
            predicted.append([best for _, best in kept])
    return float(f1_score(expected, predicted, zero_division=0))


def span_scores(model: nn.Module, batches: Batches) -> dict[str, float]:
    """Exact match and F1 of the best span, over tokens: SQuAD's scores with tokens for words.

    The best span maximizes start + end logit among start <= end < start + 30; span (0, 0) is "no answer".
    """
    exact = overlap = 0.0
    total = 0
    for batch, (start, end) in _predictions(model, batches):
        starts, ends = labels_of(batch)
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        for row in range(len(start)):
            low, high = best_span(start[row][mask[row]], end[row][mask[row]])
            ids = batch["input_ids"][row][mask[row]]
            gold = (int(starts[row]), int(ends[row]))
            exact += float((low, high) == gold)
            overlap += token_f1(ids[low : high + 1].tolist(), ids[gold[0] : gold[1] + 1].tolist())
            total += 1
    return {"em": exact / total, "f1": overlap / total}


def best_span(start: Tensor, end: Tensor, longest: int = MAX_ANSWER_LENGTH) -> tuple[int, int]:
    """(first, last) token of the best span; `start` and `end` are logits [S]."""
    scores = (start[:, None] + end[None, :]).double()
    allowed = torch.ones_like(scores).triu().tril(longest - 1).bool()
    best = int(scores.masked_fill(~allowed, -math.inf).argmax())
    return best // len(end), best % len(end)


def token_f1(predicted: list[int], expected: list[int]) -> float:
    """F1 of two bags of tokens."""
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected)) if common else 0.0


def checked(value: Any, what: str) -> float:
    """A metric as a finite float. Raises DataError for NaN, infinity or anything that is no number."""
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{what}: returned {type(value).__name__}, not a number; return one float, larger is better"
        ) from error
    if not math.isfinite(number):
        raise DataError(
            f"{what}: returned {number}; check the evaluation data, and that the evaluator divides by its size"
        )
    return number
