"""The GPU timing core on a simulated GPU and on the host's clock, and what the report, the table and trtexec say."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engines.bench import BenchSettings, Contestant, bench
from engines.bench_gpu import GpuBenchSettings, render_gpu_table
from engines.bench_gpu.nvml import Telemetry
from engines.bench_gpu.report import Measured, benchmark
from engines.bench_gpu.timing import EventClock, GpuContestant, Lane, Meter, Samples, block_sizes, race
from engines.bench_gpu.trtexec import trtexec_line
from qdq.base.types import Feeds, Outputs
from qdq.errors import BuildError, ConfigError

US = 1_000

pytestmark = pytest.mark.usefixtures("light_collections")


class SimulatedGpu:
    """A host and streams that run launches behind it, in nanoseconds; nothing else makes time pass."""

    def __init__(self) -> None:
        self.host = 0
        self.log: list[tuple[str, int]] = []  # (contestant, first token id) per launch

    def lane(
        self, kernel_us: float, enqueue_us: float = 0, name: str = "", batch: Callable[[], int] = lambda: 0
    ) -> Lane:
        stream = SimulatedStream(self)

        def launch() -> None:
            self.log.append((name, batch()))
            self.host += round(enqueue_us * US)
            stream.free = max(stream.free, self.host) + round(kernel_us * US)

        return Lane(launch, stream)

    def contestant(self, name: str, kernel_us: float, value: float = 1.0) -> GpuContestant:
        batch = [0]

        def load(feeds: Feeds) -> None:
            batch[0] = int(feeds["input_ids"][0, 0])

        lane = self.lane(kernel_us, 0, name, lambda: batch[0])
        return GpuContestant(name, "tensorrt", (lane,), load, lambda: {"logits": np.full((2, 2), value, np.float32)})

    def now(self) -> int:
        return self.host

    def observe(self, name: str) -> None:
        self.log.append((f"observe {name}", 0))


class SimulatedStream:
    """An EventClock: an event is reached when everything launched before it on this stream has ended."""

    def __init__(self, gpu: SimulatedGpu) -> None:
        self.gpu, self.free = gpu, 0

    def event(self) -> list[int]:
        return [0]

    def record(self, event: list[int]) -> None:
        event[0] = max(self.gpu.host, self.free)

    def elapsed(self, start: list[int], end: list[int]) -> float:
        assert end[0] <= self.gpu.host, "an event was read before it was waited for"
        return (end[0] - start[0]) / 1e6

    def synchronize(self, event: list[int]) -> None:
        self.gpu.host = max(self.gpu.host, event[0])


class HostClock:
    """Events of a synchronous callable: recording one reads the host's clock, nothing has to be waited for."""

    def __init__(self, now: Callable[[], int] = time.perf_counter_ns) -> None:
        self.now = now

    def event(self) -> list[int]:
        return [0]

    def record(self, event: list[int]) -> None:
        event[0] = self.now()

    def elapsed(self, start: list[int], end: list[int]) -> float:
        return (end[0] - start[0]) / 1e6

    def synchronize(self, event: list[int]) -> None: ...


def timed(
    launch: Callable[[], None],
    clock: EventClock,
    settings: GpuBenchSettings,
    host: Callable[[], int] = time.perf_counter_ns,
) -> Samples:
    """`settings.iterations` samples of `launch` after `settings.warmup` calls."""
    meter = Meter((Lane(launch, clock),), settings.in_flight, host)
    meter.block(settings.warmup)
    return meter.block(settings.iterations)


def feeds(tag: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    ids = np.arange(8, dtype=np.int64).reshape(2, 4) + 100 * tag
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def small(**changes: Any) -> GpuBenchSettings:
    return GpuBenchSettings(**{"batch": 2, "sequence": 4, "warmup": 2, "iterations": 6, "block": 2, **changes})


# The timing core


def test_a_real_callable_on_the_host_clock() -> None:
    calls = itertools.count()

    def launch() -> None:
        next(calls)
        time.sleep(0.002)

    samples = timed(launch, HostClock(), GpuBenchSettings(warmup=3, iterations=10))
    assert next(calls) == 13 and len(samples.latency_ms) == len(samples.enqueue_ms) == 10
    assert min(samples.latency_ms) >= 2 and samples.wall_ms >= sum(samples.latency_ms)
    assert all(held >= 2 for held in samples.enqueue_ms)  # a synchronous call holds the host all along


@hypothesis_settings(max_examples=30)
@given(st.lists(st.integers(1, 10**9), min_size=3, max_size=20), st.sampled_from([1, 2]))
def test_samples_are_the_durations_of_the_launches_in_order(durations: list[int], in_flight: int) -> None:
    now = [0]
    pending: Iterator[int] = itertools.chain([0], durations)  # one warm-up call

    def launch() -> None:
        now[0] += next(pending)

    clock = HostClock(lambda: now[0])
    settings = GpuBenchSettings(warmup=1, iterations=len(durations), in_flight=in_flight)
    samples = timed(launch, clock, settings, lambda: now[0])
    assert samples.latency_ms == samples.enqueue_ms == tuple(duration / 1e6 for duration in durations)
    assert samples.wall_ms == pytest.approx(sum(durations) / 1e6)


def test_two_in_flight_hide_the_host_and_one_shows_it() -> None:
    settings = {n: GpuBenchSettings(warmup=1, iterations=5, in_flight=n) for n in (1, 2)}
    results = {}
    for in_flight, options in settings.items():
        gpu = SimulatedGpu()
        lane = gpu.lane(kernel_us=100, enqueue_us=30)
        results[in_flight] = timed(lane.launch, lane.clock, options, gpu.now)
    assert results[1].latency_ms == pytest.approx([0.13] * 5)
    assert results[2].latency_ms == pytest.approx([0.13, *[0.1] * 4])  # only the first finds the GPU idle
    assert results[2].enqueue_ms == pytest.approx([0.03] * 5)
    assert results[1].wall_ms == pytest.approx(0.65) and results[2].wall_ms == pytest.approx(0.53)


def test_streams_overlap_so_throughput_comes_from_the_wall() -> None:
    gpu = SimulatedGpu()
    lanes = [gpu.lane(kernel_us=100), gpu.lane(kernel_us=50)]
    samples = Meter(lanes, 2, lambda: gpu.host).block(4)
    assert samples.latency_ms == pytest.approx([0.1] * 4 + [0.05] * 4)
    assert samples.wall_ms == pytest.approx(0.4)  # the slower stream, not the sum


def test_what_a_launch_raises_passes_through() -> None:
    def launch() -> None:
        raise BuildError("plan cannot be launched")

    with pytest.raises(BuildError, match="plan cannot be launched"):
        timed(launch, HostClock(), small())


# The race


def test_contestants_take_turns_in_blocks_on_the_same_batch() -> None:
    gpu = SimulatedGpu()
    entries = [gpu.contestant("int8", 50), gpu.contestant("tensorrt-fp16", 100)]
    blocks = race(entries, [feeds(0), feeds(1)], small(iterations=5), gpu.observe)
    assert {name: [len(block.latency_ms) for block in rounds] for name, rounds in blocks.items()} == {
        "int8": [2, 2, 1],
        "tensorrt-fp16": [2, 2, 1],
    }
    runs = [(name, tag, len(list(group))) for (name, tag), group in itertools.groupby(gpu.log)]
    assert [name for name, _, _ in runs[:2]] == ["int8", "tensorrt-fp16"]  # warm-up
    turns = [run for run in runs[2:] if not run[0].startswith("observe")]
    assert [name for name, _, _ in turns] == [
        *("int8", "tensorrt-fp16"),
        *("tensorrt-fp16", "int8"),
        *("int8", "tensorrt-fp16"),
    ]
    assert [tag for _, tag, _ in turns] == [0, 0, 100, 100, 0, 0]
    # 4 launches to settle, the block, 4 under which the device is read
    assert [launches for _, _, launches in turns] == [10, 10, 10, 10, 9, 9]


def test_the_device_is_read_while_it_works_and_outside_the_samples() -> None:
    gpu = SimulatedGpu()
    lane = gpu.lane(kernel_us=100)
    entry = GpuContestant(
        "int8", "tensorrt", (lane,), lambda batch: None, lambda: {"logits": np.ones((2, 2), np.float32)}
    )
    busy = []

    def observe(name: str) -> None:
        busy.append(lane.clock.free > gpu.host)  # type: ignore[attr-defined]
        gpu.host += 150 * US  # a slow driver call

    blocks = race([entry], [feeds()], small(), observe)
    assert busy == [True] * 3
    assert {round(ms, 6) for block in blocks["int8"] for ms in block.latency_ms} == {0.1}


def test_progress_counts_every_launch_of_warm_up_and_measurement() -> None:
    gpu, seen = SimulatedGpu(), []
    race([gpu.contestant("a", 1), gpu.contestant("b", 1)], [feeds()], small(), progress=lambda *at: seen.append(at))
    assert seen == [(done, 16) for done in (2, 4, 6, 8, 10, 12, 14, 16)]


def test_a_contestant_that_computes_nan_is_not_timed() -> None:
    gpu = SimulatedGpu()
    with pytest.raises(BuildError, match=r"contestant 'int8': output 'logits' holds NaN or Inf"):
        race([gpu.contestant("int8", 1, value=float("nan"))], [feeds()], small())


@given(st.integers(3, 5000), st.integers(1, 300))
def test_blocks_add_up(iterations: int, block: int) -> None:
    sizes = block_sizes(iterations, block)
    assert sum(sizes) == iterations and all(0 < size <= block for size in sizes) and set(sizes[:-1]) <= {block}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"iterations": 2}, "GPU benchmark iterations is 2; it must be at least 3"),
        ({"warmup": 0}, "warmup is 0"),
        ({"in_flight": 3}, r"in_flight is 3; choose 1 \(lone requests\) or 2"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        GpuBenchSettings(**changes)
    defaults = GpuBenchSettings()
    assert defaults.warmup >= 100 and defaults.iterations >= 1000


# The report


def gpu_report(nvml: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    gpu = SimulatedGpu()
    costs = {"int8": 50, "tensorrt-fp16": 100, "tensorrt-fp32": 400}
    settings = small(**changes)
    blocks = race([gpu.contestant(name, cost) for name, cost in costs.items()], [feeds()], settings)
    quiet = Telemetry(None, None, "no NVML here").report()
    line = trtexec_line(Path("int8.plan"), {"input_ids": (2, 4)}, settings, 10)
    engines = dict.fromkeys(costs, "tensorrt")
    measured = Measured(engines, blocks, "Simulated", nvml or quiet, 1.5, {"int8": {"10": line}})
    return benchmark(measured, [feeds()], settings, {"tensorrt": "10.14"})


def test_the_schema_is_the_one_of_the_cpu_benchmark() -> None:
    def run(feeds: Feeds) -> Outputs:
        return {"logits": np.ones((2, 2), np.float32)}

    entry = Contestant("int8", "onnxruntime", run)
    cpu = bench([entry], [feeds()], BenchSettings(batch=2, sequence=4, budget_s=None, samples=3), {"numpy": "2"})
    gpu = gpu_report()
    assert gpu.keys() - cpu.keys() == {"gpu"} and cpu.keys() <= gpu.keys()
    assert gpu["contestants"]["int8"].keys() == cpu["contestants"]["int8"].keys()
    assert gpu["contestants"]["int8"]["latency_ms"].keys() == cpu["contestants"]["int8"]["latency_ms"].keys()
    assert gpu["workload"].keys() == cpu["workload"].keys() and gpu["machine"].keys() == cpu["machine"].keys()


def test_throughput_and_speedups() -> None:
    report = gpu_report(iterations=200, block=50)
    entry = report["contestants"]["int8"]
    assert entry["latency_ms"]["p50"] == entry["latency_ms"]["p99"] == pytest.approx(0.05)
    assert entry["sequences_per_s"] == pytest.approx(2 / 50e-6)
    assert entry["speedup"] == pytest.approx({"tensorrt-fp16": 2, "tensorrt-fp32": 8})
    assert report["contestants"]["tensorrt-fp32"]["speedup"]["tensorrt-fp16"] == pytest.approx(0.25)
    assert report["rounds"] == 4 and report["gpu"]["settings"]["streams"] == 1


def test_with_several_streams_throughput_counts_all_of_them() -> None:
    blocks = {"int8": [Samples((1.0,) * 8, (0.1,) * 8, 4.0)]}  # two streams, four launches each, 1 ms apiece
    measured = Measured({"int8": "tensorrt"}, blocks, "Simulated", {}, 1.0)
    entry = benchmark(measured, [feeds()], small(streams=2), {})["contestants"]["int8"]
    assert entry["sequences_per_s"] == pytest.approx(2 * 8 / 4e-3) and entry["samples"] == 8


def test_the_table_shows_the_three_side_by_side_and_the_equivalent_command() -> None:
    text = render_gpu_table(gpu_report(iterations=200, block=50))
    lines = text.splitlines()
    assert lines[0].split() == [
        "contestant",
        "(ms)",
        "p50",
        "p90",
        "p95",
        "p99",
        "mean",
        "seq/s",
        "x",
        "FP32",
        "x",
        "FP16",
    ]
    assert lines[1].split() == ["int8", *["0.050"] * 5, "40000", "8.00", "2.00"]
    assert max(map(len, lines[:4])) <= 80
    assert "no clocks, power or temperature: no NVML here" in text and "int8, TensorRT 10.x: trtexec" in text


# trtexec

LINE = "trtexec --loadEngine=m.plan --shapes=input_ids:40x128,attention_mask:40x128 --iterations=1000 --duration=0"
LINE += " --warmUp=200 --percentile=50,90,95,99"


@pytest.mark.parametrize(
    ("changes", "ten", "eleven"),
    [
        ({}, " --useCudaGraph --useSpinWait --noDataTransfers", ""),
        (
            {"cuda_graph": False, "spin_wait": False, "transfers": True},
            "",
            " --noCudaGraph --noSpinWait --includeDataTransfers",
        ),
        (
            {"streams": 2, "device": 1, "in_flight": 1, "transfers": True},
            " --infStreams=2 --device=1 --exposeDMA --useCudaGraph --useSpinWait",
            " --infStreams=2 --device=1 --exposeDMA --includeDataTransfers",
        ),
    ],
)
def test_trtexec_spelling_of_both_releases(changes: dict[str, Any], ten: str, eleven: str) -> None:
    shapes = {"input_ids": (40, 128), "attention_mask": (40, 128)}
    plan = Path("m.plan")
    settings = GpuBenchSettings(**changes)
    assert trtexec_line(plan, shapes, settings, 10) == LINE + ten
    assert trtexec_line(plan, shapes, settings, 11) == LINE + eleven
    with pytest.raises(ConfigError, match="no trtexec line for TensorRT 8"):
        trtexec_line(plan, shapes, settings, 8)
