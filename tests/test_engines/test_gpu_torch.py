"""A torch module timed by the GPU benchmark's core: on the host here, on a real device where there is one; and NVML."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from engines.bench_gpu import GpuBenchSettings, render_gpu_table, time_torch_module
from engines.bench_gpu.nvml import telemetry
from qdq.errors import ConfigError

Feed = dict[str, np.ndarray[Any, Any]]


class TinyEncoder(torch.nn.Module):
    """Embedding and one linear layer: ids [B, S] -> logits [B, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 16)
        self.linear = torch.nn.Linear(16, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        masked = self.embedding(input_ids) * attention_mask.unsqueeze(-1)
        result: torch.Tensor = self.linear(masked.mean(dim=1))
        return result


def batches(count: int, batch: int, sequence: int, vocabulary: int = 50) -> list[Feed]:
    rng = np.random.default_rng(0)
    mask = np.ones((batch, sequence), np.int64)
    mask[1::2, sequence // 2 :] = 0
    return [{"input_ids": rng.integers(0, vocabulary, mask.shape), "attention_mask": mask} for _ in range(count)]


# On the host


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the module would have to be on it")
def test_without_a_gpu_a_module_is_timed_on_the_host_and_the_report_says_so() -> None:
    settings = GpuBenchSettings(batch=4, sequence=8, warmup=5, iterations=100, block=25)
    report = time_torch_module(TinyEncoder(), batches(3, 4, 8), settings)
    entry = report["contestants"]["torch-fp32"]
    assert entry["samples"] == 100 and report["rounds"] == 4 and report["gpu"] is None
    assert 0 < entry["latency_ms"]["p50"] <= entry["latency_ms"]["p90"] <= entry["latency_ms"]["p99"]
    assert (
        0 < entry["sequences_per_s"] <= 4 / (entry["latency_ms"]["mean"] / 1e3) * 1.0001
    )  # wall time holds all samples
    assert entry["speedup"] == {"torch-fp32": 1.0} and report["versions"]["torch"] == torch.__version__
    assert "timed on the host" in render_gpu_table(report)


def test_repeated_tokens_are_refused() -> None:
    ones = {"input_ids": np.ones((4, 8), np.int64), "attention_mask": np.ones((4, 8), np.int64)}
    with pytest.raises(ConfigError, match="repeats one token of input_ids; feed different real texts"):
        time_torch_module(TinyEncoder(), [ones], GpuBenchSettings(batch=4, sequence=8))


# On a GPU

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
    return model.to("cuda", torch.float16)


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
        reports[name] = time_torch_module(model, workload, settings)
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
    with telemetry(pci_bus_id="0000:3b:00.0") as readings:
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
    with telemetry(pci_bus_id="0000:3b:00.0") as readings:
        readings.observe("int8")
        assert readings.report()["throttled"] == []
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(mask=1 << 9))
    with telemetry(pci_bus_id="0000:3b:00.0") as readings:
        readings.observe("int8")
        assert readings.report()["throttled"] == ["a reason newer than this program"]


def test_without_nvml_every_field_is_null_and_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with telemetry(uuid="GPU-1") as readings:
        readings.observe("int8")
        nvml = readings.report()
    assert "nvidia-ml-py cannot be imported" in nvml["reason"] and "pip install nvidia-ml-py" in nvml["reason"]
    assert set(nvml["before"].values()) == {None} and nvml["during"] == {}
