"""The timing core: events around every launch, contestants interleaved in blocks. Knows no GPU; takes any callable.

* A **launch** is timed by the events recorded before and after it on its own stream. With two in flight, the event
  before a launch is reached when the previous launch ends, so what the host needs to issue the work is hidden behind
  it; with one in flight it is part of the sample.
* A **block** is a run of launches of one contestant. Its wall time, from the first event of the first stream to the
  last event of any stream, gives the throughput; with several streams the samples overlap and cannot.
* A **round** gives every contestant one block, in the order of a Williams design as on the CPU (engines.bench), on the
  same batch; batches rotate from round to round and are put in place before the clock starts. Blocks instead of
  single launches, because a GPU changes its clock frequency with the power a contestant draws and needs time for it.
* Before each block some launches are not counted (the first ones run in the wake of the previous contestant), and after
  it some more are issued, under which the device's state is read: never inside a sample, and never on an idle GPU.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engines.bench.interleave import Clock, balanced_order, check_outputs, garbage_collection_paused
from engines.bench_gpu.settings import GpuBenchSettings
from qdq.base.types import Feeds, Outputs, Progress

SETTLE_LAUNCHES = 4  # before each block, not counted
LOAD_LAUNCHES = 4  # after each block, not counted: reading the device's state takes the host about a millisecond

Event = Any  # handed out by a clock; only that clock (or one of the same device) can read it
Launch = Callable[[], None]
Observe = Callable[[str], None]  # called with the contestant's name while its launches run


class EventClock(Protocol):
    """Events on one stream of launches; times are milliseconds.

    A GPU records an event when it gets there, long after the host asked for it; the time between two is read later.
    """

    def event(self) -> Event:
        """A new event, reusable: recording it again overwrites the moment."""
        ...

    def record(self, event: Event) -> None:
        """Ask for `event` to be recorded when everything launched before has ended."""
        ...

    def elapsed(self, start: Event, end: Event) -> float:
        """Milliseconds from `start` to `end`; both must have been recorded and waited for."""
        ...

    def synchronize(self, event: Event) -> None:
        """Wait on the host until `event` has been recorded."""
        ...


@dataclass(frozen=True)
class Samples:
    """Times of one block, in milliseconds and in the order of launches per stream."""

    latency_ms: tuple[float, ...]  # event before to event after each launch
    enqueue_ms: tuple[float, ...]  # host time inside each launch call
    wall_ms: float  # first event to last event, all streams


@dataclass(frozen=True)
class Lane:
    """One stream of launches and the clock that records events on it."""

    launch: Launch
    clock: EventClock


@dataclass(frozen=True)
class GpuContestant:
    """One engine in the race. `load` puts a batch where every lane reads it; `outputs` fetches lane 0's results."""

    name: str  # int8, tensorrt-fp16, tensorrt-fp32
    engine: str  # tensorrt
    lanes: tuple[Lane, ...]
    load: Callable[[Feeds], None]
    outputs: Callable[[], Outputs]


class _Track:
    """One lane and the events of the launches it has in flight."""

    def __init__(self, lane: Lane, in_flight: int, host: Clock) -> None:
        self.lane, self.host = lane, host
        self.pairs: list[tuple[Event, Event]] = [(lane.clock.event(), lane.clock.event()) for _ in range(in_flight)]
        self.closing = lane.clock.event()
        self.begin()

    def begin(self) -> None:
        self.latency: list[float] = []
        self.enqueue: list[float] = []

    def step(self) -> None:
        """Issue one launch; when as many as allowed are under way, wait for the oldest first."""
        launched = len(self.enqueue)
        if launched - len(self.latency) == len(self.pairs):
            self.collect()
        start, end = self.pairs[launched % len(self.pairs)]
        self.lane.clock.record(start)
        before = self.host()
        self.lane.launch()
        self.enqueue.append((self.host() - before) / 1e6)
        self.lane.clock.record(end)

    def collect(self) -> None:
        start, end = self.pairs[len(self.latency) % len(self.pairs)]
        self.lane.clock.synchronize(end)
        self.latency.append(self.lane.clock.elapsed(start, end))

    def end(self) -> None:
        self.lane.clock.record(self.closing)
        while len(self.latency) < len(self.enqueue):
            self.collect()
        self.lane.clock.synchronize(self.closing)


class Meter:
    """Runs blocks of launches on the lanes of one contestant. Its events are made once and reused."""

    def __init__(self, lanes: Sequence[Lane], in_flight: int, host: Clock) -> None:
        self._tracks = [_Track(lane, in_flight, host) for lane in lanes]
        self._clock = lanes[0].clock
        self._opening = self._clock.event()

    def block(self, launches: int) -> Samples:
        """`launches` on every lane, round robin, and everything waited for."""
        with self._span() as wall:
            for _ in range(launches):
                for track in self._tracks:
                    track.step()
        latency = tuple(sample for track in self._tracks for sample in track.latency)
        enqueue = tuple(sample for track in self._tracks for sample in track.enqueue)
        return Samples(latency, enqueue, wall())

    def under_load(self, action: Callable[[], None], launches: int = LOAD_LAUNCHES) -> None:
        """Call `action` while `launches` run on every lane."""
        with self._span():
            for track in self._tracks:
                for _ in range(launches):
                    track.lane.launch()
            action()

    @contextlib.contextmanager
    def _span(self) -> Iterator[Callable[[], float]]:
        """From the opening event to the end of every lane; yields what asks for the milliseconds afterwards."""
        for track in self._tracks:
            track.begin()
        self._clock.record(self._opening)
        yield lambda: max(self._clock.elapsed(self._opening, track.closing) for track in self._tracks)
        for track in self._tracks:
            track.end()


def race(
    contestants: Sequence[GpuContestant],
    workload: Sequence[Feeds],
    settings: GpuBenchSettings,
    observe: Observe = lambda name: None,
    progress: Progress | None = None,
) -> dict[str, list[Samples]]:
    """Blocks of every contestant by the scheme above: name -> one Samples per round.

    `progress` counts launches, warm-up included. Raises BuildError naming the contestant whose outputs are empty or not
    finite after the warm-up; what launches raise passes through.
    """
    show = progress or (lambda done, total: None)
    total = len(contestants) * (settings.warmup + settings.iterations)
    meters = [Meter(contestant.lanes, settings.in_flight, time.perf_counter_ns) for contestant in contestants]
    blocks: dict[str, list[Samples]] = {contestant.name: [] for contestant in contestants}
    with garbage_collection_paused():
        # Warm-up, contestant by contestant; its outputs must be usable.
        for index, (contestant, meter) in enumerate(zip(contestants, meters, strict=True)):
            contestant.load(workload[0])
            meter.block(settings.warmup)
            check_outputs(contestant.name, contestant.outputs())
            show((index + 1) * settings.warmup, total)
        # Rounds: a block of every contestant on the same batch, its device read under launches that do not count.
        done = len(contestants) * settings.warmup
        for turn, launches in enumerate(block_sizes(settings.iterations, settings.block)):
            for place in balanced_order(len(contestants), turn):
                contestant, meter = contestants[place], meters[place]
                contestant.load(workload[turn % len(workload)])
                meter.block(SETTLE_LAUNCHES)
                blocks[contestant.name].append(meter.block(launches))
                meter.under_load(functools.partial(observe, contestant.name))
                done += launches
                show(done, total)
    return blocks


def block_sizes(iterations: int, block: int) -> list[int]:
    """Full blocks, then what is left."""
    full, rest = divmod(iterations, block)
    return [block] * full + [rest] * bool(rest)
