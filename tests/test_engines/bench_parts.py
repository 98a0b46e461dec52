"""Runners on a clock that only they advance, for tests of the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engines.bench import BenchSettings, Contestant, bench
from qdq.base.types import Feeds, Outputs

MS = 1_000_000


class Track:
    """A clock that only runners advance, and a log of (name, first token id of the batch) per call."""

    def __init__(self) -> None:
        self.now = 0
        self.calls: list[tuple[str, int]] = []

    def clock(self) -> int:
        return self.now

    def contestant(self, name: str, cost_ms: Callable[[int], float] | float, engine: str = "fake") -> Contestant:
        def run(feeds: Feeds) -> Outputs:
            calls = sum(1 for other, _ in self.calls if other == name)
            self.calls.append((name, int(feeds["input_ids"][0, 0])))
            self.now += round((cost_ms(calls) if callable(cost_ms) else cost_ms) * MS)
            return {"logits": np.ones((2, 2), np.float32)}

        return Contestant(name, engine, run)


def feeds(tag: int = 0, batch: int = 2, sequence: int = 4) -> Feeds:
    ids = np.arange(batch * sequence, dtype=np.int64).reshape(batch, sequence) + 100 * tag
    mask = np.ones_like(ids)
    mask[0, sequence // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def fixed(budget_s: float | None = None, samples: int = 12, warmup: int = 1) -> BenchSettings:
    return BenchSettings(batch=2, sequence=4, budget_s=budget_s, samples=samples, warmup=warmup)


def run_bench(track: Track, entries: Sequence[Contestant], options: BenchSettings, batches: int = 3) -> dict[str, Any]:
    return bench(entries, [feeds(i) for i in range(batches)], options, {"numpy": "2"}, clock=track.clock)
