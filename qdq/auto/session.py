"""The session of a run: the model, its data and evaluator as the methods of `qdq.compress` take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, Trainer

from qdq.auto.config import Configuration
from qdq.auto.config.training import DEFAULT_EPOCHS
from qdq.auto.inputs.data import Rows
from qdq.auto.inputs.models import Source
from qdq.auto.training.recipe import norm_limit, precision
from qdq.base.screen import Screen
from qdq.compress import CompressionArguments
from qdq.compress.datasets import Labels, check_labels
from qdq.compress.evaluators import CustomEvaluate, builtin_evaluator, evaluator_on, logits_of
from qdq.compress.loss import TaskLoss
from qdq.compress.method import Session
from qdq.errors import ConfigError, DataError
from qdq.tasks.heads import head_of_model

OFF = 0.05  # of a metric, absolute: a given model further from origin_metric is another one, or its data are


@dataclass(frozen=True)
class Materials:
    """Model and data of a run.

    Attributes:
        model: a transformers model, float32.
        tokenizer: is written beside the result; None where there is none.
        rows: the data.
        save_dir: everything that is made lies below it.
        source: place where the model was found, whose text files are copied; None where a program made it.
        evaluate: ``(model, loader) -> float`` in place of the built-in evaluator.
    """

    model: PreTrainedModel
    tokenizer: Any
    rows: Rows
    save_dir: Path
    source: Source | None = None
    evaluate: CustomEvaluate | None = None


def open_session(configuration: Configuration, materials: Materials, screen: Screen) -> Session:
    """A session of `qdq.compress`; nothing has been evaluated yet.

    Raises ConfigError where no evaluator fits, DataError for training data that are missing or labelled wrongly.
    """
    # The model on its device, and the data
    args = arguments(configuration, materials)
    trainer = Trainer(materials.model, args, processing_class=materials.tokenizer)
    device, rows = materials.model.device, materials.rows
    dev, train = rows.batches("dev", device), rows.batches("train", device)
    assert dev is not None  # every way of giving data has evaluation rows
    if configuration.trains and train is None:
        raise DataError(f"{configuration.where}: {configuration.strategies[0]} trains, and there is no training data")
    # Labels, where there are any, and the loss and metric they allow
    labels = rows.labels
    labelled = train is not None and bool(labels.columns(next(iter(train))))
    if labelled:
        check_labels(rows.train, materials.model, "training data", labels)
    scored = materials.evaluate is None
    if scored:
        check_labels(rows.dev, materials.model, "evaluation data", labels)

    def builtin() -> Any:
        return rows.metric or builtin_evaluator(materials.model, materials.tokenizer)

    evaluate = evaluator_on(dev, materials.evaluate, builtin)
    loss: Any = TaskLoss(labels=labels) if labelled else OwnAnswers(labels)
    return Session(trainer, materials.model, args, evaluate, loss, train, dev, materials.save_dir, screen)


def arguments(
    configuration: Configuration, materials: Materials, last: bool = False, **options: Any
) -> CompressionArguments:
    """TrainConfig, and `options`, as the arguments of `compress()`; `last` is the quantization step of several."""
    training, size = configuration.training, materials.rows.batch_size
    iterations = training.iterations(last)
    given: dict[str, Any] = {
        "output_dir": str(materials.save_dir),
        "strategy": "ptq",
        "learning_rate": training.rate(last)(0),
        "num_train_epochs": float(training.epochs or DEFAULT_EPOCHS),
        "max_steps": -1 if iterations is None else iterations,
        "per_device_train_batch_size": size,
        "per_device_eval_batch_size": size,
        "save_steps": training.eval_iter,
        "logging_steps": training.logging_iter,
        "max_grad_norm": norm_limit(training),
        "device": "gpu" if torch.accelerator.is_available() else "cpu",
        "report_to": "none",
        "disable_tqdm": True,
        **precision(training),
    }
    return CompressionArguments(**{**given, **options})


def check_origin(configuration: Configuration, found: float) -> None:
    """Raise ConfigError naming both numbers where `found`, the given model's metric, is not origin_metric."""
    wanted = configuration.training.origin_metric
    if wanted is not None and abs(found - wanted) > OFF:
        raise ConfigError(
            f"{configuration.where}: TrainConfig: origin_metric is {wanted} and the given model has {found:.4f}, more "
            f"than {OFF} off: check model_dir, the data and the order of classes, or correct origin_metric"
        )


@dataclass(frozen=True)
class OwnAnswers:
    """The loss of data without labels, as `qdq.compress.method.Loss`: what the model answers counts as right.

    Its gradients tell which heads and neurons the answers hang on. Raises ConfigError for a model that gives scores,
    which have no such loss.
    """

    labels: Labels

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor], head_mask: Tensor | None = None) -> Tensor:
        """A scalar."""
        logits = logits_of(model(**self.labels.without(batch)))
        kind = head_of_model(model).kind
        if kind == "scores":
            raise ConfigError("training data: have no labels, which importance needs for a model that gives scores")
        each = logits if isinstance(logits, tuple) else (logits,)
        return torch.stack([_answered(one, kind) for one in each]).mean()


def _answered(logits: Tensor, kind: str) -> Tensor:
    """The cross-entropy of logits, or of UIE's probabilities, to their own decisions."""
    if kind == "marks":
        return functional.binary_cross_entropy(logits, (logits.detach() > 0.5).to(logits.dtype))
    if kind == "multi-label":
        return functional.binary_cross_entropy_with_logits(logits, (logits.detach() > 0).to(logits.dtype))
    flat = logits.reshape(-1, logits.shape[-1])
    return functional.cross_entropy(flat, flat.detach().argmax(-1))
