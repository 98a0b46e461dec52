"""A torch module timed by the GPU benchmark's core on a real device, where there is one; and NVML readings."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from engines.bench_gpu import GpuBenchSettings, render_gpu_table
from engines.bench_gpu.nvml import telemetry
from engines.bench_gpu.report import Measured, benchmark
from engines.bench_gpu.timing import GpuContestant, Lane, race

Feed = dict[str, np.ndarray[Any, Any]]


def batches(count: int, batch: int, sequence: int, vocabulary: int) -> list[Feed]:
    rng = np.random.default_rng(0)
    mask = np.ones((batch, sequence), np.int64)
    mask[1::2, sequence // 2 :] = 0
    return [{"input_ids": rng.integers(0, vocabulary, mask.shape), "attention_mask": mask} for _ in range(count)]


# A torch module on a GPU: torch's own events and graphs, so that the core is proved without TensorRT and its bindings


class TorchClock:
    """CUDA events on a torch stream (an EventClock)."""

    def __init__(self, stream: torch.cuda.Stream, spin_wait: bool) -> None:
        self.stream, self.blocking = stream, not spin_wait

    def event(self) -> Any:
        return torch.cuda.Event(enable_timing=True, blocking=self.blocking)  # type: ignore[no-untyped-call]

    def record(self, event: Any) -> None:
        event.record(self.stream)

    def elapsed(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end))

    def synchronize(self, event: Any) -> None:
        event.synchronize()


class TorchLane:
    """A module on its own CUDA stream, reading from and writing to fixed memory, as a CUDA graph needs it."""

    def __init__(self, module: torch.nn.Module, feeds: Feed, settings: GpuBenchSettings) -> None:
        self.module, self.transfers = module, settings.transfers
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.host = {key: torch.from_numpy(np.array(array)).pin_memory() for key, array in feeds.items()}
        self.inputs = {key: tensor.to("cuda") for key, tensor in self.host.items()}
        self.fetched: torch.Tensor | None = None  # page-locked copy of the output, with transfers
        torch.cuda.synchronize()
        for _ in range(3):  # as PyTorch's notes ask before a capture: libraries set themselves up, memory is reserved
            self.eager()
        self.stream.synchronize()
        launch = self.captured() if settings.cuda_graph else self.eager
        self.lane = Lane(launch, TorchClock(self.stream, settings.spin_wait))

    def load(self, feeds: Feed) -> None:
        with torch.cuda.stream(self.stream):
            for key, array in feeds.items():
                self.host[key].copy_(torch.from_numpy(array))
                self.inputs[key].copy_(self.host[key], non_blocking=True)
        self.stream.synchronize()

    def eager(self) -> None:
        with torch.cuda.stream(self.stream):
            self.issue()

    def issue(self) -> None:
        if self.transfers:
            for key, tensor in self.host.items():
                self.inputs[key].copy_(tensor, non_blocking=True)
        self.result: torch.Tensor = self.module(**self.inputs)[0]
        if self.transfers:
            if self.fetched is None:
                self.fetched = torch.empty(self.result.shape, dtype=self.result.dtype, pin_memory=True)
            self.fetched.copy_(self.result, non_blocking=True)

    def captured(self) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self.issue()

        def replay() -> None:
            with torch.cuda.stream(self.stream):
                graph.replay()

        return replay


def timed(module: torch.nn.Module, workload: list[Feed], settings: GpuBenchSettings) -> dict[str, Any]:
    """The benchmark.json object of one module, called torch-fp16."""
    began, found = time.perf_counter_ns(), torch.cuda.get_device_properties(0)
    bus = f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"
    with torch.inference_mode(), telemetry(bus) as readings:
        lanes = [TorchLane(module, workload[0], settings) for _ in range(settings.streams)]

        def load(feeds: Any) -> None:
            for lane in lanes:
                lane.load(feeds)

        entry = GpuContestant(
            "torch-fp16",
            "torch",
            tuple(lane.lane for lane in lanes),
            load,
            lambda: {"hidden": lanes[0].result.float().cpu().numpy()},
        )
        blocks = race([entry], workload, settings, readings.observe)
        seconds = (time.perf_counter_ns() - began) / 1e9
        measured = Measured({entry.name: "torch"}, blocks, found.name, readings.report(), seconds)
    return benchmark(measured, workload, settings, {"torch": torch.__version__})


BATCH, SEQUENCE = 40, 128
VARIANTS: dict[str, dict[str, Any]] = {
    "graph": {},
    "eager": {"cuda_graph": False},
    "lone": {"in_flight": 1},
    "blocking": {"spin_wait": False},
    "transfers": {"transfers": True},
    "streams": {"streams": 2},
}


def bert_base() -> torch.nn.Module:
    """BERT-base in FP16 with random weights: latency does not depend on them."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model: torch.nn.Module = transformers.BertModel(transformers.BertConfig(attn_implementation="eager"))
    return model.to("cuda", torch.float16).eval()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here (torch.cuda.is_available() is false)")
def test_bert_base_on_a_real_device() -> None:
    model, workload = bert_base(), batches(3, BATCH, SEQUENCE, 30000)
    reports = {}
    for name, changes in VARIANTS.items():
        settings = GpuBenchSettings(
            batch=BATCH, sequence=SEQUENCE, iterations=1000 if name == "graph" else 200, **changes
        )
        reports[name] = timed(model, workload, settings)
        sys.stdout.write(f"{name}\n{render_gpu_table(reports[name])}")  # pytest -s shows it
    entries = {name: report["contestants"]["torch-fp16"] for name, report in reports.items()}
    p50 = {name: entry["latency_ms"]["p50"] for name, entry in entries.items()}
    graph = reports["graph"]
    assert entries["graph"]["samples"] == 1000 and graph["gpu"]["clock"] == "CUDA events"
    assert 0.1 < p50["graph"] < 500  # 894 GFLOP of half-precision matmuls
    assert entries["graph"]["latency_ms"]["p99"] >= p50["graph"]
    # the events of the device agree with the host's clock over all launches: batch / latency is the throughput
    assert entries["graph"]["sequences_per_s"] == pytest.approx(
        BATCH / (entries["graph"]["latency_ms"]["mean"] / 1e3), rel=0.1
    )
    assert p50["graph"] <= 1.1 * p50["eager"] and p50["graph"] <= 1.1 * p50["transfers"]
    enqueue = {name: reports[name]["gpu"]["enqueue_ms"]["torch-fp16"]["p50"] for name in ("graph", "eager")}
    assert enqueue["graph"] < enqueue["eager"]  # one call instead of hundreds
    check_nvml(graph["gpu"]["nvml"])


def check_nvml(nvml: dict[str, Any]) -> None:
    """Without NVML there is a reason; with it, every field has a value or is named as missing."""
    if nvml["reason"]:
        return
    during = nvml["during"]["torch-fp16"]
    assert during["readings"] == 20
    for field in ("sm_clock_mhz", "memory_clock_mhz", "power_w", "temperature_c"):
        assert field in nvml["missing"] or during[field]["max"] > 0


# NVML


class FakeNvml:
    """The few functions of pynvml, for a T4 under load whose driver does not tell the power."""

    class NVMLError(Exception): ...

    class NVMLError_FunctionNotFound(NVMLError): ...  # noqa: N801

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, mask: int, old_driver: bool = False) -> None:
        self.mask, self.old_driver, self.clock, self.open = mask, old_driver, 1590, 0
        names: tuple[str, ...] = (
            "GpuIdle",
            "ApplicationsClocksSetting",
            "SwPowerCap",
            "HwSlowdown",
            "SyncBoost",
            "SwThermalSlowdown",
        )
        names += ("HwThermalSlowdown", "HwPowerBrakeSlowdown", "DisplayClockSetting")
        for bit, name in enumerate(names):
            setattr(self, f"nvmlClocksEventReason{name}", 1 << bit)

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def __getattr__(self, name: str) -> Any:
        if name == "nvmlDeviceGetCurrentClocksEventReasons" and self.old_driver:
            return self._refuse(self.NVMLError_FunctionNotFound("Function Not Found"))
        answers = {
            "nvmlDeviceGetHandleByPciBusId": lambda bus: f"gpu {bus}",
            "nvmlDeviceGetClockInfo": self._clock,
            "nvmlDeviceGetMaxClockInfo": lambda gpu, kind: 1590,
            "nvmlDeviceGetPowerUsage": self._refuse(self.NVMLError("Not Supported")),
            "nvmlDeviceGetEnforcedPowerLimit": lambda gpu: 70000,
            "nvmlDeviceGetTemperature": lambda gpu, sensor: 61,
            "nvmlDeviceGetUtilizationRates": lambda gpu: type("Rates", (), {"gpu": 98}),
            "nvmlSystemGetDriverVersion": lambda: "580.1",
            "nvmlDeviceGetCurrentClocksEventReasons": lambda gpu: self.mask,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda gpu: self.mask,
        }
        if name not in answers:
            raise AttributeError(name)
        return answers[name]

    def _clock(self, gpu: str, kind: int) -> int:
        self.clock -= 100 if kind == self.NVML_CLOCK_SM else 0
        return self.clock

    @staticmethod
    def _refuse(error: Exception) -> Any:
        def refuse(gpu: str) -> None:
            raise error

        return refuse


@pytest.mark.parametrize("old_driver", [False, True])
def test_readings_before_during_and_after(monkeypatch: pytest.MonkeyPatch, old_driver: bool) -> None:
    fake = FakeNvml(mask=0b100, old_driver=old_driver)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    with telemetry("0000:3b:00.0") as readings:
        readings.observe("int8")
        readings.observe("int8")
        nvml = readings.report()
    assert fake.open == 0 and nvml["reason"] is None
    assert nvml["limits"]["power_limit_w"] == 70 and nvml["limits"]["max_sm_clock_mhz"] == 1590
    assert nvml["before"]["sm_clock_mhz"] == 1490 and nvml["after"]["sm_clock_mhz"] == 1190
    assert nvml["during"]["int8"]["sm_clock_mhz"] == {"min": 1290, "mean": 1340, "max": 1390}
    assert nvml["during"]["int8"]["reasons"] == {"power cap": 2} and nvml["throttled"] == ["power cap"]
    assert nvml["before"]["power_w"] is None and nvml["missing"] == {"power_w": "Not Supported"}


def test_idleness_and_settings_are_no_throttling_but_a_new_reason_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(mask=0b11))
    with telemetry("0000:3b:00.0") as readings:
        readings.observe("int8")
        assert readings.report()["throttled"] == []
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(mask=1 << 9))
    with telemetry("0000:3b:00.0") as readings:
        readings.observe("int8")
        assert readings.report()["throttled"] == ["a reason newer than this program"]


def test_without_nvml_every_field_is_null_and_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with telemetry("0000:3b:00.0") as readings:
        readings.observe("int8")
        nvml = readings.report()
    assert "nvidia-ml-py cannot be imported" in nvml["reason"] and "pip install nvidia-ml-py" in nvml["reason"]
    assert set(nvml["before"].values()) == {None} and nvml["during"] == {}
