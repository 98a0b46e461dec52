"""Run an injected, calibrated model with any set of its points quantized, and measure how far its answers move.

Switching a point is a flag. The layer outputs with nothing and with everything quantized are kept; layers before the
first point that differs from one of these runs are not computed again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qdq.base.choices import INFORMATION_EXTRACTION, MULTI_LABEL, REGRESSION
from qdq.base.types import Feeds
from qdq.inject import base_path, quantizers
from qdq.inject.families import family_of
from qdq.inject.quantizer import TensorQuantizer, broadcast_mask
from qdq.inject.scale import scale_of
from qdq.loading.model import EncoderModule
from qdq.placing.units import layer_of
from qdq.tasks.evaluation import Evaluation

Outputs = tuple[Tensor, ...]  # of one batch, in the order of the task's
LEAST = 1e-6  # a probability's distance from 0 and 1 where its logit is taken
TOKEN_LEVEL = ("token-classification", "fill-mask", "language-modeling")


@dataclass(frozen=True)
class Trial:
    """Distance of the answers with one set of points quantized from those in floating point.

    Attributes:
        divergence: mean over answers (texts, tokens, or spans); 0 for equal outputs.
        kind: what one answer contributes: ``kl`` nats, Kullback-Leibler from floating point's probabilities, at the
            temperature that gives floating point's logits a standard deviation of 1 (arXiv 1503.02531): a fine-tuned
            model is certain of its own training texts, and at temperature 1 hardly any error would show there;
            ``cosine``, 1 - cosine of embeddings; ``squared``, squared error of a single logit.
        mse: mean squared error of the outputs' elements, padding left out.
        metric: of the task; None where it was not asked for.
    """

    divergence: float
    kind: str
    mse: float
    metric: float | None = None


class Probe:
    """An injected, calibrated module with data to try placements on.

    Args:
        module: holds the injected model; every placed point has an amax.
        evaluation: its feeds are run; with labels, trials can have the task metric.
    """

    def __init__(self, module: EncoderModule, evaluation: Evaluation) -> None:
        self._module, self._evaluation = module, evaluation
        self._points = quantizers(module.model)
        self.names = tuple(self._points)  # in model order
        self.samples, self.labelled = evaluation.samples, evaluation.labelled
        self._batches = [{n: torch.from_numpy(a) for n, a in feed.items()} for feed in evaluation.feeds]
        self.tokens = sum(int(batch["attention_mask"].sum()) for batch in self._batches)  # without padding
        self._layers = encoder_layers(module)
        self._kept: dict[frozenset[str], list[list[Any]]] = {}  # layer outputs of a run: per layer, per batch
        self._reference = self._remembered(())
        self._remembered(self.names)

    def _remembered(self, enabled: Collection[str]) -> list[Outputs]:
        """Run with `enabled` and keep its layer outputs for later trials that share its first layers."""
        layers: list[list[Any]] = [[] for _ in self._layers]
        with ExitStack() as hooks:
            for layer, seen in zip(self._layers, layers, strict=True):
                hooks.enter_context(layer.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output)))
            outputs = self._run(frozenset(enabled))
        # A layer that is called more than once (ALBERT's) cannot be skipped.
        if all(len(seen) == len(self._batches) for seen in layers):
            self._kept[frozenset(enabled)] = layers
        return outputs

    def trial(self, enabled: Collection[str], metric: bool = False) -> Trial:
        """Quantize exactly `enabled` and compare with floating point; `metric` scores the answers too."""
        outputs = self._run(frozenset(enabled))
        masks = [batch["attention_mask"] for batch in self._batches]
        trial = compare(self._evaluation.compared_as, self._reference, outputs, masks)
        return replace(trial, metric=self._score(outputs)) if metric and self.labelled else trial

    def _score(self, outputs: Sequence[Outputs]) -> float:
        turn = iter(outputs)

        def runner(feeds: Feeds) -> dict[str, Any]:
            return {n: value.numpy() for n, value in zip(self._module.outputs, next(turn), strict=True)}

        return self._evaluation.score(runner).value

    def _run(self, enabled: frozenset[str]) -> list[Outputs]:
        """Outputs of every batch with exactly `enabled` quantized."""
        # Start from the kept run that agrees with `enabled` on the most layers.
        first, source = 0, list[list[Any]]()
        for kept, layers in self._kept.items():
            agree = min(map(self._layer_of, kept ^ enabled), default=len(self._layers))
            if agree > first:
                first, source = agree, layers
        results = []
        with torch.inference_mode(), self._switched(enabled):
            for number, batch in enumerate(self._batches):
                with _skipped(self._layers[:first], [outputs[number] for outputs in source]):
                    results.append(self._module(**batch))
        return results

    def _layer_of(self, point: str) -> int:
        """Index of the layer a point is in; 0 for one before all layers, the number of layers for one behind them."""
        index = layer_of(point)
        if index is None:
            return 0 if "embeddings" in point else len(self._layers)
        return index

    @contextmanager
    def _switched(self, enabled: frozenset[str]) -> Iterator[None]:
        before = {name: point._disabled for name, point in self._points.items()}
        try:
            for name, point in self._points.items():
                point._disabled = name not in enabled
            yield
        finally:
            for name, point in self._points.items():
                point._disabled = before[name]

    def signal_to_noise(self) -> dict[str, float]:
        """Decibels of each point's tensor over its own rounding and clipping error, padding left out (FP32 run)."""
        sums = {name: [0.0, 0.0] for name in self.names}

        def listen(point: TensorQuantizer, arguments: tuple[Tensor, ...], mask: Tensor) -> None:
            x = arguments[0]
            error = x - point._fake_quantize(x, scale_of(point.current_amax(x), point._num_bits))
            counts = broadcast_mask(mask, x, point.layout)
            for index, tensor in enumerate((x, error)):
                counted = tensor if counts is None else torch.where(counts, tensor, 0.0)
                sums[point.point][index] += float(counted.double().square().sum())

        with torch.inference_mode(), self._switched(frozenset()):
            for batch in self._batches:
                mask = batch["attention_mask"].bool().flatten(0, -2)
                with ExitStack() as stack:
                    for point in self._points.values():
                        stack.enter_context(point.register_forward_pre_hook(partial(listen, mask=mask)))
                    self._module(**batch)
        return {name: decibels(signal, noise) for name, (signal, noise) in sums.items()}


def compare(task: str, expected: Sequence[Outputs], actual: Sequence[Outputs], masks: Sequence[Tensor]) -> Trial:
    """Compare the outputs of all batches, in the order of the task's; attention masks are [B, S] (or [B, N, S])."""
    kind, divergence, answers, squared, elements = "kl", 0.0, 0, 0.0, 0
    for batch, others, mask in zip(expected, actual, masks, strict=True):
        for one, other in zip(batch, others, strict=True):
            kind, each, error = _divergences(task, one, other, mask.bool())
            divergence += float(each.double().clamp(min=0).sum())
            answers += each.numel()
            squared += float(error.double().square().sum())
            elements += error.numel()
    return Trial(divergence / max(answers, 1), kind, squared / max(elements, 1))


def _divergences(task: str, expected: Tensor, actual: Tensor, keep: Tensor) -> tuple[str, Tensor, Tensor]:
    """Kind, divergence of each answer, and error of each element of one output, padding left out."""
    if task == "question-answering":
        floor = torch.where(keep, 0.0, -1.0e4)  # padding has no probability
        mean = (expected * keep).sum(1, keepdim=True) / keep.sum(1, keepdim=True)
        scale = _spread((expected - mean)[keep])
        return "kl", _kullback_leibler(expected / scale + floor, actual / scale + floor), (expected - actual)[keep]
    if task == INFORMATION_EXTRACTION:  # each probability is a decision of its own, as a class of several
        expected, actual = (torch.logit(side[keep], LEAST) for side in (expected, actual))
        return _divergences(MULTI_LABEL, expected, actual, keep)
    if task in TOKEN_LEVEL or (task == "feature-extraction" and expected.dim() == 3):
        expected, actual = expected[keep], actual[keep]
    error = expected - actual
    if task == "feature-extraction":
        return "cosine", 1 - torch.nn.functional.cosine_similarity(expected, actual, dim=-1), error
    if task == MULTI_LABEL:  # each class is a decision of its own, between its logit and 0
        scale = _spread(expected)
        sides = (torch.stack([side / scale, torch.zeros_like(side)], -1) for side in (expected, actual))
        return "kl", _kullback_leibler(*sides), error
    if expected.shape[-1] == 1 or task == REGRESSION:
        return "squared", error.square().flatten(), error
    scale = _spread(expected - expected.mean(-1, keepdim=True))
    return "kl", _kullback_leibler(expected / scale, actual / scale), error


def _kullback_leibler(expected: Tensor, actual: Tensor) -> Tensor:
    log_p, log_q = expected.double().log_softmax(-1), actual.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _spread(centered: Tensor) -> float:
    """Standard deviation of logits centered per answer, 1 when there is none."""
    return float(centered.double().square().mean().sqrt()) or 1.0


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise); 200 where there is no noise, which keeps JSON free of infinities."""
    return 200.0 if noise <= 0 or signal <= 0 else float(10 * torch.log10(torch.tensor(signal / noise).double()))


def encoder_layers(module: EncoderModule) -> list[nn.Module]:
    """The encoder's blocks, in order."""
    family = family_of(module.model.config.model_type)
    pattern = re.compile(rf"{re.escape(base_path(module.model) + family.layers)}\.\d+")
    return [layer for path, layer in module.model.named_modules() if pattern.fullmatch(path)]


@contextmanager
def _skipped(layers: Sequence[nn.Module], outputs: Sequence[Any]) -> Iterator[None]:
    """Let `layers` return what they returned before instead of computing it."""
    try:
        for layer, output in zip(layers, outputs, strict=False):
            layer.forward = lambda *_, output=output, **__: output
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
