"""A GPU through cuda-python's runtime module. Importing this module needs the package cuda-bindings, 12 or later."""

from __future__ import annotations

import ctypes
import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engines.bench_gpu.device import DeviceInfo, Replay, Stream, cannot_open, cuda_version
from engines.bench_gpu.timing import Event
from qdq.errors import BuildError

cudart: Any = importlib.import_module("cuda.bindings.runtime")
PCI_BUS_ID_LENGTH = 13  # what cudaDeviceGetPCIBusId wants: 0000:3b:00.0 and a NUL


@contextmanager
def opened(index: int, spin: bool) -> Iterator[CudartDevice]:
    """Make the device current, which creates its primary context; the process keeps that, as with any runtime call."""
    try:
        _call(cudart.cudaSetDevice(index))
        device = CudartDevice(index, spin)
    except BuildError as error:
        raise cannot_open(index, error) from error
    try:
        yield device
    finally:
        device.close()


class CudartDevice:
    """A Device (engines.bench_gpu.device)."""

    def __init__(self, index: int, spin: bool) -> None:
        self.info = DeviceInfo(
            name=_call(cudart.cudaGetDeviceProperties(index)).name.decode(errors="replace").rstrip("\0"),
            pci_bus_id=_call(cudart.cudaDeviceGetPCIBusId(PCI_BUS_ID_LENGTH, index)).decode().rstrip("\0"),
            binding="cuda-bindings",
            versions={
                "cuda-bindings": metadata.version("cuda-bindings"),
                "cuda": cuda_version(_call(cudart.cudaRuntimeGetVersion())),
                "cuda-driver": cuda_version(_call(cudart.cudaDriverGetVersion())),
            },
        )
        self._event_flags = cudart.cudaEventDefault if spin else cudart.cudaEventBlockingSync
        self._undo: list[Callable[[], Any]] = []  # what frees the things handed out

    def stream(self) -> Stream:
        native = _call(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self._undo.append(lambda: cudart.cudaStreamDestroy(native))
        return Stream(int(native), native)

    def event(self) -> Event:
        event = _call(cudart.cudaEventCreateWithFlags(self._event_flags))
        self._undo.append(lambda: cudart.cudaEventDestroy(event))
        return event

    def record(self, event: Event, stream: Stream) -> None:
        _call(cudart.cudaEventRecord(event, stream.native))

    def wait(self, event: Event) -> None:
        _call(cudart.cudaEventSynchronize(event))

    def elapsed(self, start: Event, end: Event) -> float:
        return float(_call(cudart.cudaEventElapsedTime(start, end)))

    def synchronize(self, stream: Stream) -> None:
        _call(cudart.cudaStreamSynchronize(stream.native))

    def allocate(self, size: int) -> int:
        address = int(_call(cudart.cudaMalloc(size)))
        self._undo.append(lambda: cudart.cudaFree(address))
        return address

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        address = int(_call(cudart.cudaMallocHost(size)))
        self._undo.append(lambda: cudart.cudaFreeHost(address))
        memory = (ctypes.c_byte * size).from_address(address)
        array: NDArray[Any] = np.frombuffer(memoryview(memory), np.dtype(dtype)).reshape(shape)
        return array

    def upload(self, address: int, source: NDArray[Any], stream: Stream) -> None:
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        _call(cudart.cudaMemcpyAsync(address, source.ctypes.data, source.nbytes, kind, stream.native))

    def download(self, target: NDArray[Any], address: int, stream: Stream) -> None:
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _call(cudart.cudaMemcpyAsync(target.ctypes.data, address, target.nbytes, kind, stream.native))

    def capture(self, stream: Stream, launch: Callable[[], None]) -> Replay:
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _call(cudart.cudaStreamBeginCapture(stream.native, mode))
        try:
            launch()
        finally:  # a stream left in capture mode refuses everything else
            ended = cudart.cudaStreamEndCapture(stream.native)
        graph = _call(ended)
        try:
            executable = _call(cudart.cudaGraphInstantiate(graph, 0))
        finally:
            cudart.cudaGraphDestroy(graph)
        self._undo.append(lambda: cudart.cudaGraphExecDestroy(executable))
        return lambda: _call(cudart.cudaGraphLaunch(executable, stream.native))

    def close(self) -> None:
        """Free what was handed out, the latest first. An error here would hide the one that matters."""
        while self._undo:
            self._undo.pop()()


def _call(answer: tuple[Any, ...]) -> Any:
    """The value of a CUDA call, or BuildError; the binding returns (error,) or (error, value)."""
    error, *value = answer
    if error != cudart.cudaError_t.cudaSuccess:
        text = cudart.cudaGetErrorString(error)[1]
        raise BuildError(f"CUDA call failed: {text.decode(errors='replace')} ({error.name})")
    return value[0] if value else None
