"""The timing scheme: every contestant in turn, round after round, so that machine drift hits all of them alike.

* A **round** times each contestant once on the same batch; batches rotate through the workload. Only the call is
  timed (input in host memory to output in host memory); the batch exists before, outputs are freed after.
* The **order** within a round follows a Williams design (E. J. Williams, 1949): over a cycle of rounds every
  contestant holds every place and follows every other one equally often, so none always runs in the wake of the
  slowest (its caches, clock frequency, spinning threads).
* **Warm-up** calls come first and are not counted; their outputs must be non-empty and finite. Under a budget, a
  contestant gets further warm-up calls only while its share (a quarter of the budget, divided equally) lasts, but
  always one.
* **Without a budget** every contestant runs in all `samples` rounds.
* **With a budget** (wall time from the first warm-up call) a slow contestant must not use it up. Samples are planned
  from the warm-up costs c by Neyman's allocation, n proportional to 1/sqrt(c) — the least total variance for a given
  time when relative spreads are alike (W. G. Cochran, *Sampling Techniques*, 3rd ed., section 5.5). A contestant
  that gets fewer samples runs every 2nd, 4th, 8th… round. Powers of two nest: whenever a slow contestant runs, all
  faster ones run in the same round, so each of its samples can be paired for a speedup. Rounds go on until the next
  one would not fit or `samples` is reached.
* Everyone gets at least three samples, even when that exceeds the budget (the report says so); only a **spare**
  contestant, which nothing is decided by, is left out where the budget has no room for its warm-up and three samples.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from engines.bench.workload import cropped
from engines.types import Runner
from qdq.base.types import Feeds, Outputs, Progress
from qdq.errors import BuildError, ConfigError

Clock = Callable[[], int]  # nanoseconds, monotonic

MIN_SAMPLES = 3  # fewest that give a median which one outlier cannot move
WARMUP_SHARE = 0.25  # of the budget
CROPPED = "-cropped"  # ends the name of a contestant that is fed cropped batches


@dataclass(frozen=True)
class Contestant:
    """One runner in the race. The FP32 baseline of an engine is named ``<engine>-fp32``."""

    name: str  # int8, openvino-fp32, onnxruntime-fp32, torch-fp32
    engine: str  # openvino | onnxruntime | tensorrt | torch
    run: Runner
    cropped: bool = False  # it gets the round's batch cropped to its longest text, as a client without packing sends it
    spare: bool = False  # left out where a budget has no room for it


@dataclass(frozen=True)
class BenchSettings:
    """Shape and extent of a benchmark.

    `threads` is what the engines were loaded with (0: their own default); it is only recorded. `pause_s` goes before
    every call: threads that a runtime lets spin after a call must not run into the next contestant's time. `bases`
    names contestants that speedups are given over, beside the FP32 baselines. `streams`: every contestant runs so many
    batches side by side in one call (see engines.bench.streams).
    Raises ConfigError for values that cannot be measured.
    """

    batch: int = 40
    sequence: int = 128
    budget_s: float | None = 20.0  # None: no limit, all `samples` rounds
    warmup: int = 3
    samples: int = 100
    threads: int = 0
    pause_s: float = 0.0
    bases: tuple[str, ...] = ()
    streams: int = 1

    def __post_init__(self) -> None:
        least = dict.fromkeys(("batch", "sequence", "warmup", "streams"), 1)
        for name, minimum in {**least, "samples": MIN_SAMPLES, "threads": 0, "pause_s": 0}.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"benchmark {name} is {getattr(self, name)}; it must be at least {minimum}")
        if self.budget_s is not None and not self.budget_s > 0:
            raise ConfigError(f"benchmark budget is {self.budget_s} s; give a positive number of seconds or none")


def both_forms(contestants: Sequence[Contestant]) -> list[Contestant]:
    """Every contestant twice: fed padded batches under its own name, and cropped ones under that plus `CROPPED`."""
    return [form for one in contestants for form in (one, replace(one, name=one.name + CROPPED, cropped=True))]


class Race:
    """One run by the scheme above, and its results by contestant name.

    `progress` counts milliseconds of the budget, or rounds when there is none.
    """

    def __init__(
        self,
        contestants: Sequence[Contestant],
        workload: Sequence[Feeds],
        settings: BenchSettings,
        clock: Clock,
        progress: Progress | None = None,
    ) -> None:
        self.settings, self.clock, self.progress = settings, clock, progress
        short = [cropped(feeds) for feeds in workload] if any(one.cropped for one in contestants) else []
        self.feeds = {one.name: short if one.cropped else workload for one in contestants}
        self.runners = {contestant.name: contestant.run for contestant in contestants}
        self.spare = [contestant.name for contestant in contestants if contestant.spare]
        self.budget_ns = math.inf if settings.budget_s is None else settings.budget_s * 1e9
        self.warm: dict[str, list[int]] = {name: [] for name in self.runners}  # nanoseconds of the warm-up calls
        self.samples: dict[str, dict[int, int]] = {name: {} for name in self.runners}  # round -> nanoseconds
        self.every = dict.fromkeys(self.runners, 1)  # the contestant ran every n-th round
        self.rounds = 0
        self.start = clock()

    def run(self) -> Race:
        """Time all contestants. Raises BuildError naming the one whose outputs are empty or not finite."""
        with garbage_collection_paused():
            self.warm_up()  # which also tells what each contestant costs, by which `count` plans the samples
            self.count()
        return self

    def elapsed(self) -> int:
        """Nanoseconds so far, warm-up included."""
        return self.clock() - self.start

    def warm_up(self) -> None:
        share = WARMUP_SHARE * self.budget_ns / len(self.runners)
        self._warm(tuple(name for name in self.runners if name not in self.spare), share)
        for name in self.spare:
            if self._has_room():
                self._warm((name,), share)
            else:
                for known in (self.runners, self.feeds, self.warm, self.samples, self.every):
                    known.pop(name)

    def _warm(self, names: Sequence[str], share: float) -> None:
        for turn in range(self.settings.warmup):
            for name in names:
                spent = self.warm[name]
                if turn and sum(spent) + min(spent) > share:
                    continue
                duration, outputs = self._time(name, turn)
                check_outputs(name, outputs)
                spent.append(duration)
            self._show(turn + 1)

    def _has_room(self) -> bool:
        """True when one more contestant, as slow as the slowest so far, fits beside everyone's fewest samples."""
        costs = [min(spent) for spent in self.warm.values() if spent]
        needed = MIN_SAMPLES * sum(costs) + (1 + MIN_SAMPLES) * max(costs, default=0)
        return self.elapsed() + needed <= self.budget_ns

    def count(self) -> None:
        remaining = self.budget_ns - self.elapsed()
        strides = plan_strides([min(spent) for spent in self.warm.values()], remaining, self.settings.samples)
        self.every = dict(zip(self.runners, strides, strict=True))
        turns: Counter[tuple[str, ...]] = Counter()
        while self.rounds < self.settings.samples:
            field = self._field()
            if not self._fits(field) and self._everyone_has_enough():
                break
            # Order and batch turn once per round of this same field: by round number, a contestant of stride 4 among
            # four would always meet the same order and the same batch.
            turn = turns[field]
            turns[field] += 1
            for place in balanced_order(len(field), turn):
                self.samples[field[place]][self.rounds], outputs = self._time(field[place], turn)
                del outputs  # freed here, not inside the next timed call
            self.rounds += 1
            self._show(self.settings.warmup + self.rounds)
        self._show(self.settings.warmup + self.settings.samples, finished=True)

    def _field(self) -> tuple[str, ...]:
        """Contestants of this round: by stride; everyone when only the minimum keeps the race going."""
        if self.elapsed() >= self.budget_ns:
            return tuple(self.runners)
        return tuple(name for name, every in self.every.items() if self.rounds % every == 0)

    def _fits(self, field: Sequence[str]) -> bool:
        # By the slowest call so far: ending a round early costs little, overrunning the budget breaks a promise.
        slowest = [max(self.samples[name].values() or self.warm[name]) for name in field]
        return self.elapsed() + sum(slowest) <= self.budget_ns

    def _everyone_has_enough(self) -> bool:
        return min(map(len, self.samples.values())) >= MIN_SAMPLES

    def _time(self, name: str, turn: int) -> tuple[int, Outputs]:
        run, feeds = self.runners[name], self.feeds[name][turn % len(self.feeds[name])]
        if self.settings.pause_s:
            time.sleep(self.settings.pause_s)
        begin = self.clock()
        outputs = run(feeds)
        return max(1, self.clock() - begin), outputs  # never 0: a coarse clock must not divide a speedup by it

    def _show(self, rounds: int, finished: bool = False) -> None:
        if self.progress is None:
            return
        total = self.settings.warmup + self.settings.samples
        if self.settings.budget_s is not None:
            total = max(1, round(self.settings.budget_s * 1e3))
            rounds = min(total, round(self.elapsed() / 1e6))
        self.progress(total if finished else rounds, total)


def balanced_order(size: int, turn: int) -> list[int]:
    """Row `turn` of a Williams design for `size` contestants: cycle of `size` rows when even, 2 x `size` when odd."""
    zigzag = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(size)]
    order = [(entry + turn) % size for entry in zigzag]
    return order[::-1] if size % 2 and (turn // size) % 2 else order


def plan_strides(costs: Sequence[float], remaining: float, samples: int) -> list[int]:
    """For each contestant, run every n-th round (a power of two), so that a good number of rounds fits `remaining`.

    `costs` and `remaining` share one unit of time. The fastest always runs every round; nobody is planned below three
    samples, so a hopeless budget comes back as equal strides.
    """
    strides = [1] * len(costs)
    if math.isinf(remaining):
        return strides
    roots = [math.sqrt(max(cost, 1)) for cost in costs]
    rounds = int(min(samples, max(MIN_SAMPLES, remaining / (min(roots) * sum(roots)))))

    def use(index: int) -> float:
        return math.ceil(rounds / strides[index]) * costs[index]

    while sum(map(use, range(len(costs)))) > remaining:
        # Rounds 0, n, 2n must exist for three samples. The fastest sets the pace and is never thinned.
        thinnable = [i for i in range(len(costs)) if costs[i] > min(costs) and 4 * strides[i] + 1 <= rounds]
        if not thinnable:
            break
        strides[max(thinnable, key=use)] *= 2
    return strides


def check_outputs(name: str, outputs: Outputs) -> None:
    """Raise BuildError naming the contestant and the output that is missing, empty or not finite."""
    if not outputs:
        raise BuildError(f"contestant '{name}' returned no outputs in warm-up; rebuild its engine before timing it")
    for output, array in outputs.items():
        if not array.size:
            raise BuildError(f"contestant '{name}': output '{output}' is empty (shape {list(array.shape)}); rebuild it")
        if not np.isfinite(array).all():
            raise BuildError(
                f"contestant '{name}': output '{output}' holds NaN or Inf on the benchmark text; timing a broken "
                "engine says nothing, look at accuracy.json and rebuild it"
            )


@contextlib.contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Switch garbage collection off, as `timeit` does: with torch loaded a full one is long enough to be a p99."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
