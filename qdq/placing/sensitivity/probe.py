"""Run an injected, calibrated model with any set of its points quantized, and say how far its answers move.

Switching a point is a flag. Layers before the first point that differs from a run whose layer outputs are kept (nothing
quantized, everything quantized, or any run named with `remember`) are not computed again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qdq.base.types import Feeds
from qdq.inject import base_path, quantizers
from qdq.inject.families import family_of
from qdq.inject.quantizer import TensorQuantizer, broadcast_mask
from qdq.inject.scale import scale_of
from qdq.load.model import EncoderModule
from qdq.placing.sensitivity.divergence import Divergence
from qdq.tasks.evaluation import Evaluation, Scores

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Trial:
    """What quantizing one set of points did."""

    divergence: float
    kind: str
    mse: float
    metric: float | None = None


@dataclass
class _Kept:
    """Layer outputs of one run: per batch, per layer."""

    enabled: frozenset[str]
    layers: list[list[Any]] = field(default_factory=list)


class Probe:
    """An injected, calibrated module with data to try placements on.

    Args:
        module: holds the injected model; every placed point has an amax.
        evaluation: its feeds are run; with labels, trials can have the task metric.
    """

    def __init__(self, module: EncoderModule, evaluation: Evaluation) -> None:
        self._module, self._evaluation = module, evaluation
        self.points = quantizers(module.model)
        self._batches = [{n: torch.from_numpy(a) for n, a in feed.items()} for feed in evaluation.feeds]
        self._layers = encoder_layers(module)
        self._reference: list[tuple[Tensor, ...]] = []
        self._kept: list[_Kept] = []
        self.forwards = 0  # batches run so far, in whole models
        self._reference = self._remembered(frozenset())

    @property
    def names(self) -> tuple[str, ...]:
        """Every point, in model order."""
        return tuple(self.points)

    @property
    def samples(self) -> int:
        """Texts, sentences or questions that are run."""
        return self._evaluation.samples

    def remember(self, enabled: Collection[str]) -> None:
        """Run with `enabled` and keep its layer outputs for later trials that share its first layers."""
        self._remembered(frozenset(enabled))

    def trial(self, enabled: Collection[str], metric: bool = False) -> Trial:
        """Quantize exactly `enabled` and compare with floating point; `metric` scores the answers too."""
        outputs = self._run(frozenset(enabled))
        divergence = Divergence()
        for reference, candidate, batch in zip(self._reference, outputs, self._batches, strict=True):
            divergence.add(self._evaluation.task, reference, candidate, batch["attention_mask"])
        scores = self._scores(outputs) if metric and self._evaluation.labelled else None
        return Trial(divergence.value(), divergence.kind, divergence.mse(), None if scores is None else scores.value)

    def scores(self, enabled: Collection[str]) -> Scores:
        """The task metrics with exactly `enabled` quantized."""
        return self._scores(self._run(frozenset(enabled)))

    def _scores(self, outputs: Sequence[tuple[Tensor, ...]]) -> Scores:
        turn = iter(outputs)

        def runner(feeds: Feeds) -> dict[str, Any]:
            return {n: value.numpy() for n, value in zip(self._module.outputs, next(turn), strict=True)}

        return self._evaluation.score(runner)

    def _remembered(self, enabled: frozenset[str]) -> list[tuple[Tensor, ...]]:
        kept = _Kept(enabled)
        outputs = self._run(enabled, kept)
        if kept.layers and all(len(layers) == len(self._layers) for layers in kept.layers):
            self._kept.append(kept)  # a layer that is called more than once (ALBERT's) cannot be skipped
        return outputs

    def _run(self, enabled: frozenset[str], keep: _Kept | None = None) -> list[tuple[Tensor, ...]]:
        with torch.inference_mode(), self._switched(enabled):
            source, first = self._start(enabled)
            results = []
            for number, batch in enumerate(self._batches):
                seen: list[Any] = []
                before = source.layers[number] if source else []
                with _skipping(self._layers[:first], before), _noting(self._layers if keep else [], seen):
                    results.append(self._module(**batch))
                if keep is not None:
                    keep.layers.append(seen)
                self.forwards += 1
        return results

    def _start(self, enabled: frozenset[str]) -> tuple[_Kept | None, int]:
        """The kept run that agrees with `enabled` on most layers, and the first layer to compute."""
        found: tuple[_Kept | None, int] = (None, 0)
        for kept in self._kept:
            first = min((self._layer_of(name) for name in kept.enabled ^ enabled), default=len(self._layers))
            if first > found[1]:
                found = (kept, first)
        return found

    def _layer_of(self, point: str) -> int:
        """Index of the layer a point is in; the first one for a point before the layers, none for one behind."""
        for index, (path, _) in enumerate(self._layers):
            if point.startswith(f"{path}."):
                return index
        return 0 if "embeddings" in point else len(self._layers)

    @contextmanager
    def _switched(self, enabled: frozenset[str]) -> Iterator[None]:
        before = {name: point._disabled for name, point in self.points.items()}
        try:
            for name, point in self.points.items():
                point._disabled = name not in enabled
            yield
        finally:
            for name, point in self.points.items():
                point._disabled = before[name]

    def signal_to_noise(self) -> dict[str, float]:
        """Decibels of each point's tensor over its own rounding and clipping error, padding left out (FP32 run)."""
        sums = {name: [0.0, 0.0] for name in self.points}
        with torch.inference_mode(), self._switched(frozenset()), _listening(self.points, sums):
            for batch in self._batches:
                for point in self.points.values():
                    point.token_mask = batch["attention_mask"].bool().flatten(0, -2)
                self._module(**batch)
            for point in self.points.values():
                point.token_mask = None
        return {name: decibels(signal, noise) for name, (signal, noise) in sums.items()}


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise); 200 where there is no noise, which keeps JSON free of infinities."""
    return 200.0 if noise <= 0 or signal <= 0 else float(10 * torch.log10(torch.tensor(signal / noise).double()))


def encoder_layers(module: EncoderModule) -> list[tuple[str, nn.Module]]:
    """(path, module) of the encoder's blocks, in order."""
    family = family_of(module.model.config.model_type)
    pattern = re.compile(rf"{re.escape(base_path(module.model) + family.layers)}\.\d+")
    return [(path, layer) for path, layer in module.model.named_modules() if pattern.fullmatch(path)]


@contextmanager
def _skipping(layers: Sequence[tuple[str, nn.Module]], outputs: Sequence[Any]) -> Iterator[None]:
    """Let `layers` return what they returned before instead of computing it."""
    skipped = []
    try:
        for (_, layer), output in zip(layers, outputs, strict=False):
            layer.forward = lambda *_, output=output, **__: output
            skipped.append(layer)
        yield
    finally:
        for layer in skipped:
            del layer.forward


@contextmanager
def _noting(layers: Sequence[tuple[str, nn.Module]], seen: list[Any]) -> Iterator[None]:
    handles = [layer.register_forward_hook(lambda _, __, output: seen.append(output)) for _, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _listening(points: Mapping[str, TensorQuantizer], sums: dict[str, list[float]]) -> Iterator[None]:
    """Add up signal and noise of every tensor that reaches a point."""

    def listen(point: TensorQuantizer, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0]
        mask = broadcast_mask(point.token_mask, x, point.layout)
        error = x - point._fake_quantize(x, scale_of(point.current_amax(x), point._num_bits))
        if mask is not None:
            x, error = torch.where(mask, x, 0.0), torch.where(mask, error, 0.0)
        both = sums[point.point]
        both[0] += float(x.double().square().sum())
        both[1] += float(error.double().square().sum())

    handles = [point.register_forward_pre_hook(listen) for point in points.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
