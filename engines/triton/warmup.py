"""Warm-up samples from real feeds: the requests Triton runs at load time, before the model reports ready."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.targets import TARGETS
from engines.triton.interface import spell
from engines.triton.settings import TritonSettings, is_safe_name
from engines.types import BuiltEngine, TensorInfo
from qdq.errors import DeployError


@dataclass(frozen=True)
class WarmupInput:
    """One input of one sample and its data file."""

    name: str
    file: str
    array: NDArray[Any]  # little-endian; no batch dimension where Triton adds it


@dataclass(frozen=True)
class WarmupSample:
    """One warm-up execution of `batch_size` requests that all carry the same `inputs`."""

    name: str
    batch_size: int
    inputs: tuple[WarmupInput, ...]


def warmup_samples(
    engine: BuiltEngine, settings: TritonSettings, feeds: Mapping[str, NDArray[Any]]
) -> list[WarmupSample]:
    """Samples of batch 1 and `max_batch_size` from one real sample (each array unbatched or [1, ...]).

    Random or zero data, the alternatives Triton offers, would give token ids outside the vocabulary or an empty
    attention mask. Raises DeployError when `feeds` do not match the engine's inputs.
    """
    names = [info.name for info in engine.inputs]
    if set(names) != set(feeds):
        raise DeployError(f"warm-up feeds {sorted(feeds)} are not the engine's inputs {sorted(names)}")
    arrays = {info.name: _sample(info, feeds[info.name]) for info in engine.inputs}
    sizes = sorted({1, settings.max_batch_size})
    if TARGETS[settings.backend].batches:
        # Triton sends `batch_size` requests of one sample each and batches them, so all sizes share one file.
        inputs = tuple(WarmupInput(name, f"{name}.bin", array) for name, array in arrays.items())
        return [WarmupSample(f"batch_{size}", size, inputs) for size in sizes]
    return [
        WarmupSample(f"batch_{size}", 1, tuple(_repeated(name, array, size) for name, array in arrays.items()))
        for size in sizes
    ]


def _sample(info: TensorInfo, feed: NDArray[Any]) -> NDArray[Any]:
    """One unbatched sample in the engine's type; converting (int64 ids to an int32 input) must not change a value."""
    if not is_safe_name(info.name):
        raise DeployError(f"input name '{info.name}' cannot name a warm-up file; rename the input in the export")
    sample = feed[0] if feed.ndim == len(info.shape) and feed.shape[0] == 1 else feed
    expected = info.shape[1:]
    fits = len(sample.shape) == len(expected) and all(
        size >= 1 and (not isinstance(want, int) or want == size)
        for size, want in zip(sample.shape, expected, strict=True)
    )
    if not fits:
        raise DeployError(
            f"warm-up feed '{info.name}' has shape {spell(feed.shape)}; expected one sample of {spell(expected)}, "
            "alone or as [1, ...]"
        )
    converted = sample.astype(np.dtype(info.dtype).newbyteorder("<"))
    if sample.dtype != converted.dtype and not np.array_equal(converted, sample):
        raise DeployError(f"warm-up feed '{info.name}' ({sample.dtype}) does not fit the engine's {info.dtype} input")
    return converted


def _repeated(name: str, sample: NDArray[Any], size: int) -> WarmupInput:
    return WarmupInput(name, f"batch_{size}.{name}.bin", np.repeat(sample[np.newaxis], size, axis=0))
