"""CUDA behind one small interface, so that the benchmark does not care which Python binding a machine has.

Two bindings fit: pycuda, and cuda-python's runtime module where pycuda is absent. Both are imported only when a device
is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import DTypeLike, NDArray

from engines.bench_gpu.timing import Event
from qdq.errors import Unavailable

Replay = Callable[[], None]


@dataclass(frozen=True)
class Stream:
    """A CUDA stream: the handle other libraries take, and the binding's own object, which keeps it alive."""

    handle: int
    native: Any


@dataclass(frozen=True)
class DeviceInfo:
    """Description of an opened device, as the report shows it."""

    name: str
    pci_bus_id: str  # finds the same device in NVML, whatever CUDA_VISIBLE_DEVICES says; not reported
    binding: str  # pycuda | cuda-bindings
    versions: dict[str, str]  # of the binding, the CUDA runtime or toolkit, and the newest CUDA the driver supports


class Device(Protocol):
    """One opened GPU. Sizes in bytes, addresses are device addresses; a failing CUDA call becomes a BuildError."""

    info: DeviceInfo

    def stream(self) -> Stream:
        """A new stream that does not wait for the default one."""
        ...

    def event(self) -> Event:
        """A new event with timing."""
        ...

    def record(self, event: Event, stream: Stream) -> None: ...

    def wait(self, event: Event) -> None:
        """Wait on the host for `event`; polls or blocks as the device was opened."""
        ...

    def elapsed(self, start: Event, end: Event) -> float:
        """Milliseconds between two events that were waited for."""
        ...

    def synchronize(self, stream: Stream) -> None: ...

    def allocate(self, size: int) -> int:
        """Device memory, freed when the device is closed."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Page-locked host memory, which copies need to be asynchronous; freed when the device is closed."""
        ...

    def upload(self, address: int, source: NDArray[Any], stream: Stream) -> None: ...

    def download(self, target: NDArray[Any], address: int, stream: Stream) -> None: ...

    def capture(self, stream: Stream, launch: Callable[[], None]) -> Replay:
        """Record what `launch` issues on `stream` as a CUDA graph; the result replays it there."""
        ...


class DeviceClock:
    """CUDA events on one stream (an EventClock)."""

    def __init__(self, device: Device, stream: Stream) -> None:
        self._device, self._stream = device, stream

    def event(self) -> Event:
        return self._device.event()

    def record(self, event: Event) -> None:
        self._device.record(event, self._stream)

    def elapsed(self, start: Event, end: Event) -> float:
        return self._device.elapsed(start, end)

    def synchronize(self, event: Event) -> None:
        self._device.wait(event)


def cannot_open(index: int, error: Exception) -> Unavailable:
    """The error of a GPU that is not there or not usable."""
    return Unavailable(f"CUDA cannot open GPU {index}: {error}; check nvidia-smi and CUDA_VISIBLE_DEVICES")


def cuda_version(number: int) -> str:
    """CUDA's integer spelling (13010) as text (13.1)."""
    return f"{number // 1000}.{number % 1000 // 10}"
