"""The built-in evaluators, chosen by model class: the metrics of `qdq.tasks` over the batches of a data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdq.base.spans import ANSWER_TOKENS
from qdq.base.tags import has_entities
from qdq.compress.callbacks import paddle_calls
from qdq.compress.datasets import IGNORED_LABEL, Batches
from qdq.compress.method import Evaluate
from qdq.errors import ConfigError, DataError
from qdq.tasks.answers import detect_scoring, score_answer
from qdq.tasks.extraction import Window, best_span
from qdq.tasks.heads import MARKS, Head, Kind, head_of_model
from qdq.tasks.metrics import classification, correlation, mean_of, multi_label
from qdq.tasks.problems import SCORES
from qdq.tasks.spans import SpanEvaluator
from qdq.tasks.tagging import tag_scores

BESIDE_LOGITS = ("loss", "hidden_states", "attentions")  # what else a model output of transformers' kind holds
CustomEvaluate = Callable[[nn.Module, Any], Any]
Evaluator = Callable[[nn.Module, Batches], dict[str, float]]  # metrics by name, the one that decides first


class Score(float):
    """The metric that decides, with all that were computed in `metrics`."""

    metrics: Mapping[str, float] = {}

    @classmethod
    def of(cls, metrics: Mapping[str, float], what: str) -> Score:
        """The first of `metrics`, and all of them. Raises DataError when it is not finite; `what` names it."""
        score = cls(checked(next(iter(metrics.values())), what))
        score.metrics = metrics
        return score


def evaluator_on(
    batches: Batches, custom: CustomEvaluate | None, builtin: Callable[[], tuple[str, Evaluator]]
) -> Evaluate:
    """The caller's evaluator of a model on `batches`, else the one `builtin` names. Raises what `builtin` does."""
    if custom is None:
        name, function = builtin()
        return lambda model: Score.of(function(model, batches), name)

    def evaluate(model: nn.Module) -> float:
        with evaluating(model), torch.no_grad(), paddle_calls(model, logits_of):
            return checked(custom(model, batches.loader()), "custom_evaluate")

    return evaluate


def builtin_evaluator(model: PreTrainedModel, tokenizer: Any = None) -> tuple[str, Evaluator]:
    """(metric name, evaluator) for the class of `model`.

    Raises ConfigError for a class that has none, and for question answering without a `tokenizer`.
    """
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        head = head_of_model(model)
        label, evaluator = EVALUATORS[head.kind]
        return label, partial(score_metrics, head=head) if head.kind == "scores" else evaluator
    if name.endswith("ForTokenClassification"):
        named: Mapping[Any, Any] = model.config.id2label or {}
        tags = [str(named.get(index)) for index in range(int(model.config.num_labels or 0))]
        return ("entity F1" if has_entities(tags) else "token accuracy"), partial(tag_metrics, tags=tags)
    if name.endswith("ForQuestionAnswering"):
        return "SQuAD F1", answer_evaluator(tokenizer)
    if name.endswith(MARKS):
        return SPANS
    raise ConfigError(
        f"{name}: has no built-in evaluator (there are some for sequence classification, token classification, "
        "question answering and UIE); pass custom_evaluate to compress()"
    )


def logits_of(output: Any) -> Any:
    """The logits of a model output: a tensor, or several such as (start, end). Custom models may return them bare."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "start_logits"):
        return output.start_logits, output.end_logits
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, Mapping):
        output = [value for name, value in output.items() if name not in BESIDE_LOGITS and isinstance(value, Tensor)]
    if isinstance(output, (tuple, list)) and output:
        return output[0] if len(output) == 1 else tuple(output)
    raise ConfigError(
        f"the model returns {type(output).__name__}, which has no logits; return logits or a tuple of them"
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode while the block runs."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _predictions(model: nn.Module, batches: Batches) -> Iterable[tuple[dict[str, Tensor], Any]]:
    """(batch, logits) for every batch, shortest samples first, in eval mode and without gradients."""
    with evaluating(model), torch.no_grad():
        for batch in batches.by_length():
            yield batch, logits_of(model(**batches.labels.without(batch)))


def accuracy(model: nn.Module, batches: Batches) -> dict[str, float]:
    """accuracy, and F1 as `qdq.tasks.metrics.classification` has it."""
    return classes_scored(model, batches)[0]


def classes_scored(model: nn.Module, batches: Batches) -> tuple[dict[str, float], NDArray[Any], NDArray[Any]]:
    """The metrics of `accuracy`, and the predicted and the right class [N] of every sample, in one order."""
    predicted: list[int] = []
    gold: list[int] = []
    classes = 0
    for batch, logits in _predictions(model, batches):
        labels = batches.labels.of(batch)
        if not isinstance(labels, Tensor) or labels.shape != logits.shape[:-1]:
            raise DataError(
                "accuracy needs one class per sample; a multi-label model says so in its config: "
                'problem_type="multi_label_classification"; for other labels pass custom_evaluate to compress()'
            )
        predicted += logits.argmax(-1).tolist()
        gold += labels.tolist()
        classes = logits.shape[-1]
    scores = classification(np.array(predicted), np.array(gold), classes)
    return {name: score() for name, score in scores.items()}, np.array(predicted), np.array(gold)


def label_set_metrics(model: nn.Module, batches: Batches) -> dict[str, float]:
    """micro and macro F1 of the classes above the head's threshold, as `qdq.tasks.metrics.multi_label` has them."""
    logits, gold = _all(model, batches)
    if logits.shape != gold.shape:
        raise DataError(
            f"labels are {list(gold.shape)} for logits {list(logits.shape)}; give each sample one 0 or 1 per class"
        )
    found = logits > np.array(head_of_model(model).cuts)
    return {name: score() for name, score in multi_label(found, gold > 0.5).items()}


def score_metrics(model: nn.Module, batches: Batches, head: Head = SCORES) -> dict[str, float]:
    """Pearson's and Spearman's correlation of scores and labels, as `qdq.tasks.metrics.correlation` has them.

    Scores are behind the activation of the `head`; mse is left out, of which less is better.
    """
    logits, gold = _all(model, batches)
    if logits.size != gold.size:
        raise DataError(
            f"labels are {list(gold.shape)} for scores {list(logits.shape)}; give each sample as many numbers as the "
            "model returns"
        )
    found = correlation(head.read(logits), gold.reshape(logits.shape))
    return {name: score() for name, score in found.items() if not score.error}


def _all(model: nn.Module, batches: Batches) -> tuple[Any, Any]:
    """Logits and labels of all samples as float64 arrays."""
    pairs = [(logits, batches.labels.of(batch)) for batch, logits in _predictions(model, batches)]
    logits, labels = (torch.cat(list(side)).double().cpu().numpy() for side in zip(*pairs, strict=True))
    return logits, labels


# By the kind of a sequence classifier's head: the metric that decides, and its evaluator
EVALUATORS: Mapping[Kind, tuple[str, Evaluator]] = {
    "classes": ("accuracy", accuracy),
    "multi-label": ("micro F1", label_set_metrics),
    "scores": ("Pearson", score_metrics),
}


def tag_metrics(model: nn.Module, batches: Batches, tags: list[str]) -> dict[str, float]:
    """Entity-level micro F1 as conlleval computes it, and its parts; positions labelled -100 do not count.

    Token accuracy alone where `tags`, the names of the classes, are none of entities.
    """
    expected: list[list[str]] = []
    predicted: list[list[str]] = []
    for batch, logits in _predictions(model, batches):
        labels = batches.labels.of(batch)
        assert isinstance(labels, Tensor)  # token classification has one label tensor
        for row, guess in zip(labels.tolist(), logits.argmax(-1).tolist(), strict=True):
            kept = [(tags[label], tags[best]) for label, best in zip(row, guess, strict=True) if label != IGNORED_LABEL]
            expected.append([label for label, _ in kept])
            predicted.append([best for _, best in kept])
    return {name: score() for name, score in tag_scores(predicted, expected, tags).items()}


def answer_evaluator(tokenizer: Any) -> Evaluator:
    """`answer_scores` with the texts that `tokenizer` reads. Raises ConfigError without one."""
    if tokenizer is None:
        raise ConfigError("SQuAD's F1 compares texts: pass tokenizer to CompressionTrainer, or custom_evaluate")
    return lambda model, batches: answer_scores(model, batches, tokenizer)


def answer_scores(model: nn.Module, batches: Batches, tokenizer: Any) -> dict[str, float]:
    """f1 and exact_match of the best spans by the official scorer of SQuAD, or CMRC 2018's for Chinese contexts.

    A sample is a window with its start and end position; answers are the decoded tokens, and the span (0, 0) is no
    answer. Windows of one question count one by one: to take the best of them, pass custom_evaluate.
    """
    pairs: list[tuple[str, str]] = []
    contexts: list[str] = []
    for batch, (start, end) in _predictions(model, batches):
        starts, ends = batches.labels.of(batch)
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        for row, kept in enumerate(mask):
            ids = batch["input_ids"][row][kept].tolist()
            outputs = {"start_logits": start[row][kept], "end_logits": end[row][kept]}
            # Token numbers stand for characters here: a span of them is what comes back.
            window = Window({}, len(pairs), tuple((index, index + 1) for index in range(len(ids))))
            span = best_span(window, {k: v.double().cpu().numpy() for k, v in outputs.items()}, ANSWER_TOKENS["squad"])
            gold = ids[int(starts[row]) : int(ends[row]) + 1] if int(ends[row]) else []
            found = ids[span.first : span.last] if span.last > 1 else []
            pairs.append((_text(tokenizer, found), _text(tokenizer, gold)))
            contexts.append(_text(tokenizer, ids))
    scoring = detect_scoring(contexts)
    exact, f1 = np.array([score_answer(answer, [gold], scoring) for answer, gold in pairs]).T
    return {"f1": mean_of(f1)(), "exact_match": mean_of(exact)()}


def span_metrics(model: nn.Module, batches: Batches) -> dict[str, float]:
    """f1, precision and recall of spans by exact matching, see `qdq.tasks.spans.SpanEvaluator`.

    Labels are the marks of starts and ends, [B, S] each.
    """
    metric = SpanEvaluator()
    for batch, (start, end) in _predictions(model, batches):
        labels = batches.labels.of(batch)
        if not isinstance(labels, tuple) or len(labels) != 2 or labels[0].shape != start.shape:
            raise DataError(
                "spans are scored by marks of starts and of ends, 0 or 1 for every token; give start_positions and "
                "end_positions of the inputs' shape"
            )
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        sides = (start * mask, end * mask, *labels)
        metric.update(*metric.compute(*(side.double().cpu().numpy() for side in sides)))
    precision, recall, f1 = metric.accumulate()
    return {"f1": f1, "precision": precision, "recall": recall}


SPANS: tuple[str, Evaluator] = ("span F1", span_metrics)


def _text(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


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
