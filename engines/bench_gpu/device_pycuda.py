"""A GPU through pycuda. Importing this module needs pycuda and the driver library it links to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pycuda
import pycuda.driver as driver
from numpy.typing import DTypeLike, NDArray

from engines.bench_gpu.device import DeviceInfo, Replay, Stream, cannot_open, cuda_version
from engines.bench_gpu.driver_graph import capture
from engines.bench_gpu.timing import Event
from qdq.errors import BuildError

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING; pycuda has no name for it


@contextmanager
def opened(index: int, spin: bool) -> Iterator[PycudaDevice]:
    """Retain and push the device's primary context, which TensorRT uses as well; release it at the end."""
    try:
        driver.init()
        native = driver.Device(index)
        context = native.retain_primary_context()
        context.push()
    except driver.Error as error:
        raise cannot_open(index, error) from error
    device = PycudaDevice(native, spin)
    try:
        yield device
    except driver.Error as error:
        raise BuildError(f"CUDA failed on {device.info.name}: {error}; a smaller batch needs less memory") from error
    finally:
        device.close()
        context.pop()
        context.detach()


class PycudaDevice:
    """A Device (engines.bench_gpu.device). pycuda has no CUDA graphs: they are captured through the driver library."""

    def __init__(self, native: Any, spin: bool) -> None:
        self.info = DeviceInfo(
            name=native.name(),
            pci_bus_id=native.pci_bus_id(),
            binding="pycuda",
            versions={
                "pycuda": pycuda.VERSION_TEXT,
                "cuda": ".".join(map(str, driver.get_version())),
                "cuda-driver": cuda_version(driver.get_driver_version()),
            },
        )
        self._event_flags = driver.event_flags.DEFAULT if spin else driver.event_flags.BLOCKING_SYNC
        self._graphs: list[Callable[[], Any]] = []  # what destroys the captured graphs
        self._held: list[Any] = []  # device and page-locked memory, freed when these objects die

    def stream(self) -> Stream:
        stream = driver.Stream(NON_BLOCKING)
        return Stream(stream.handle, stream)

    def event(self) -> Event:
        return driver.Event(self._event_flags)

    def record(self, event: Event, stream: Stream) -> None:
        event.record(stream.native)

    def wait(self, event: Event) -> None:
        event.synchronize()

    def elapsed(self, start: Event, end: Event) -> float:
        return float(end.time_since(start))

    def synchronize(self, stream: Stream) -> None:
        stream.native.synchronize()

    def allocate(self, size: int) -> int:
        memory = driver.mem_alloc(size)
        self._held.append(memory)
        return int(memory)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        array: NDArray[Any] = driver.pagelocked_empty(shape, dtype)
        self._held.append(array)
        return array

    def upload(self, address: int, source: NDArray[Any], stream: Stream) -> None:
        driver.memcpy_htod_async(address, source, stream.native)

    def download(self, target: NDArray[Any], address: int, stream: Stream) -> None:
        driver.memcpy_dtoh_async(target, address, stream.native)

    def capture(self, stream: Stream, launch: Callable[[], None]) -> Replay:
        replay, destroy = capture(stream.handle, launch)
        self._graphs.append(destroy)
        return replay

    def close(self) -> None:
        """Free what was handed out while the context is still current: graphs, which use the memory, first."""
        for destroy in self._graphs:
            destroy()
        self._graphs.clear()
        self._held.clear()
