"""From which share of real tokens on a packed engine is faster without its packing, measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from engines.pieces import MASK
from engines.types import Runner, TensorInfo
from qdq.base.types import Feeds

ALWAYS, NEVER = 0.0, 2.0  # shares from which it runs without its packing
PART = 0.7  # of the tokens: the second point of the line through what packed batches cost
SPREAD = 0.4  # between the shortest and the longest text of that batch, in parts of the sequence
CALLS = 3  # of each; the fastest counts
LEAST = 0.5


def measure_full(open_engine: Callable[[float], Runner], inputs: Sequence[TensorInfo], shape: tuple[int, ...]) -> float:
    """Return the share of real tokens from which batches of `shape` are faster without packing, 0.5 to 2.0.

    2.0 is never. `open_engine` opens the engine so that it packs below a share. Without packing every batch costs the
    same; with it, what a line through a full batch and one of texts of different lengths says. Raises BuildError.
    """
    without, packed = open_engine(ALWAYS), open_engine(NEVER)
    full, part = _feeds(inputs, np.ones(shape, np.int64)), _feeds(inputs, _lengths(shape))
    seconds: dict[str, list[float]] = {"without": [], "full": [], "part": []}
    for _ in range(CALLS + 1):
        for name, run, feeds in (("without", without, full), ("full", packed, full), ("part", packed, part)):
            begin = time.perf_counter()
            run(feeds)
            seconds[name].append(time.perf_counter() - begin)
    # The first calls compile
    fastest = {name: min(times[1:]) for name, times in seconds.items()}
    return crossing(fastest["without"], fastest["full"], fastest["part"], float(part[MASK].mean()))


def crossing(without: float, full: float, part: float, share: float) -> float:
    """Share at which a line through (1, `full`) and (`share`, `part`), in seconds, reaches `without`, 0.5 to 2.0."""
    if full <= without:
        return NEVER
    if full <= part:  # noise: more tokens cost no less
        return LEAST
    return round(max(LEAST, 1 - (full - without) * (1 - share) / (full - part)), 3)


def _lengths(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """A mask whose texts have every length around PART of the sequence."""
    texts, columns = int(np.prod(shape[:-1])), shape[-1]
    lengths = np.linspace(PART - SPREAD / 2, PART + SPREAD / 2, texts) * columns
    return (np.arange(columns) < lengths.round()[:, None]).astype(np.int64).reshape(shape)


def _feeds(inputs: Sequence[TensorInfo], mask: NDArray[np.int64]) -> Feeds:
    """Zeros beside a mask: times do not depend on the words."""
    return {info.name: mask if info.name == MASK else np.zeros_like(mask) for info in inputs}
