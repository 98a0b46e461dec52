"""Clocks, power, temperature and throttling of one GPU, read through NVML (the package nvidia-ml-py).

A latency without them cannot be compared: a T4 (70 W) leaves its boost clock within a second of INT8 GEMMs. What a
device, a driver or a container does not tell is null, and the report says why.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Reading = dict[str, Any]  # the fields of `READINGS`, and "reasons": names of what holds the clock below its maximum

# Bit -> what it means. The first group slows a benchmark down; the second is how the device was set, or idleness.
THROTTLING = {
    "nvmlClocksEventReasonSwPowerCap": "power cap",
    "nvmlClocksEventReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksEventReasonSwThermalSlowdown": "thermal slowdown (software)",
    "nvmlClocksEventReasonHwThermalSlowdown": "thermal slowdown (hardware)",
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": "power brake",
}
SETTINGS = {
    "nvmlClocksEventReasonGpuIdle": "idle",
    "nvmlClocksEventReasonApplicationsClocksSetting": "clocks set by the user",
    "nvmlClocksEventReasonSyncBoost": "sync boost",
    "nvmlClocksEventReasonDisplayClockSetting": "display clock",
}
OTHER = "a reason newer than this program"
# Field -> how it is read from (module, handle).
READINGS: dict[str, Callable[[Any, Any], float]] = {
    "sm_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "memory_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
    "power_w": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    "temperature_c": lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    "utilization_percent": lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
}
LIMITS: dict[str, Callable[[Any, Any], float | str]] = {
    "max_sm_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "max_memory_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_MEM),
    "power_limit_w": lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000,
    "driver": lambda nvml, gpu: str(nvml.nvmlSystemGetDriverVersion()),
}


def _reason_bits(nvml: Any, gpu: Any) -> int:
    try:
        return int(nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu))
    except nvml.NVMLError_FunctionNotFound:  # a driver before R535 knows only the old name; the bits are the same
        return int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))


class Telemetry:
    """Readings before, during (per contestant) and after a benchmark; `report` puts them together."""

    def __init__(self, nvml: Any, gpu: Any, reason: str | None = None) -> None:
        self._nvml, self._gpu, self._reason = nvml, gpu, reason
        self._missing: dict[str, str] = {}
        self._during: dict[str, list[Reading]] = {}
        self._limits = self._read(LIMITS)
        self._before = self._reading()

    def observe(self, contestant: str) -> None:
        """Take a reading while the launches of `contestant` run."""
        if self._reason is None:
            self._during.setdefault(contestant, []).append(self._reading())

    def report(self) -> dict[str, Any]:
        """The ``gpu.nvml`` object: takes the last reading, so call it right after the measurement."""
        after = self._reading()
        seen = {reason for readings in self._during.values() for one in readings for reason in one["reasons"] or ()}
        return {
            "reason": self._reason,
            "missing": dict(self._missing),
            "limits": self._limits,
            "before": self._before,
            "during": {name: summarize_readings(readings) for name, readings in self._during.items()},
            "after": after,
            "throttled": sorted(seen - set(SETTINGS.values())),
        }

    def _reading(self) -> Reading:
        return {**self._read(READINGS), "reasons": self._reasons()}

    def _read(self, fields: Mapping[str, Callable[[Any, Any], Any]]) -> dict[str, Any]:
        return {name: self._ask(name, read) for name, read in fields.items()}

    def _ask(self, name: str, read: Callable[[Any, Any], Any]) -> Any:
        if self._reason is not None:
            return None
        try:
            return read(self._nvml, self._gpu)
        except self._nvml.NVMLError as error:
            self._missing[name] = str(error)
            return None

    def _reasons(self) -> list[str] | None:
        mask = self._ask("reasons", _reason_bits)
        if mask is None:
            return None
        bits = {getattr(self._nvml, constant): text for constant, text in {**THROTTLING, **SETTINGS}.items()}
        return [text for bit, text in bits.items() if mask & bit] + [OTHER] * bool(mask & ~sum(bits))


def summarize_readings(readings: Sequence[Reading]) -> dict[str, Any]:
    """Minimum, mean and maximum of each field over the readings that have it, and how often each reason was given."""
    summary: dict[str, Any] = {"readings": len(readings)}
    for name in READINGS:
        values = [one[name] for one in readings if one[name] is not None]
        summary[name] = {"min": min(values), "mean": statistics.fmean(values), "max": max(values)} if values else None
    given = [reason for one in readings for reason in one["reasons"] or ()]
    summary["reasons"] = {reason: given.count(reason) for reason in sorted(set(given))}
    return summary


@contextmanager
def telemetry(pci_bus_id: str) -> Iterator[Telemetry]:
    """NVML of the GPU with this PCI bus id (0000:3b:00.0).

    Never raises for want of NVML: readings are then null, and the report gives the reason.
    """
    nvml, gpu, reason = _attached(pci_bus_id)
    try:
        yield Telemetry(nvml, gpu, reason)
    finally:
        if nvml is not None:
            nvml.nvmlShutdown()


def _attached(pci_bus_id: str) -> tuple[Any, Any, str | None]:
    """(NVML's module when it is initialized, the GPU's handle, the reason that there are no readings)."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError as error:
        return None, None, f"the package nvidia-ml-py cannot be imported ({error}): pip install nvidia-ml-py"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return None, None, f"NVML cannot be loaded: {error}"
    try:
        return nvml, nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id), None
    except nvml.NVMLError as error:
        return nvml, None, f"NVML does not know the device: {error}"
