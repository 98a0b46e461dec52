"""The cuda-python device, and the graphs of the pycuda device, on stand-ins: copies, replay, freeing, failures."""

from __future__ import annotations

import ctypes
import importlib
import re
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.bench_gpu import driver_graph
from qdq.errors import BuildError, Unavailable


class FakeCudart:
    """The functions of cuda.bindings.runtime the device calls, on host memory; each answers (error, value)."""

    class cudaError_t:  # noqa: N801
        cudaSuccess = SimpleNamespace(name="cudaSuccess")  # noqa: N815

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaEventDefault, cudaEventBlockingSync, cudaStreamNonBlocking = 0, 1, 1  # noqa: N815

    def __init__(self, broken: str = "") -> None:
        self.broken, self.live, self.blocks = broken, 0, dict[int, Any]()
        self.recorded: list[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)
        return lambda *arguments: self.call(name, *arguments)

    def call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        if name == self.broken:
            return (SimpleNamespace(name="cudaErrorFake"), None)
        self.live += bool(re.search("Create|Malloc|Instantiate|EndCapture", name))
        self.live -= bool(re.search("Destroy|Free", name))
        value = getattr(self, f"_{name}", lambda *_: 5)(*arguments)
        return (self.cudaError_t.cudaSuccess, value)

    def _cudaGetErrorString(self, error: Any) -> bytes:  # noqa: N802
        return b"something fake"

    def _cudaGetDeviceProperties(self, index: int) -> Any:  # noqa: N802
        return SimpleNamespace(name=b"Fake T4")

    def _cudaDeviceGetPCIBusId(self, length: int, index: int) -> bytes:  # noqa: N802
        return b"0000:3b:00.0\0"

    def _cudaDriverGetVersion(self) -> int:  # noqa: N802
        return 13010

    _cudaRuntimeGetVersion = _cudaDriverGetVersion  # noqa: N815

    def _cudaMalloc(self, size: int) -> int:  # noqa: N802
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    _cudaMallocHost = _cudaMalloc  # noqa: N815

    def _cudaMemcpyAsync(self, target: int, source: int, count: int, kind: int, stream: Any) -> None:  # noqa: N802
        if self.recorded is None:
            ctypes.memmove(target, source, count)
        else:
            self.recorded.append((target, source, count))

    def _cudaStreamBeginCapture(self, stream: Any, mode: int) -> None:  # noqa: N802
        self.recorded = []

    def _cudaStreamEndCapture(self, stream: Any) -> Any:  # noqa: N802
        recorded, self.recorded = self.recorded, None
        return recorded

    def _cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:  # noqa: N802
        return graph

    def _cudaGraphLaunch(self, graph: Any, stream: Any) -> None:  # noqa: N802
        for operation in graph:
            ctypes.memmove(*operation)


def cudart_device(monkeypatch: pytest.MonkeyPatch, fake: FakeCudart) -> Any:
    module = importlib.import_module("engines.bench_gpu.device_cudart") if _real_cudart() else None
    if module is None:
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
        monkeypatch.delitem(sys.modules, "engines.bench_gpu.device_cudart", raising=False)
        module = importlib.import_module("engines.bench_gpu.device_cudart")
        monkeypatch.delitem(sys.modules, "engines.bench_gpu.device_cudart")
    monkeypatch.setattr(module, "cudart", fake)
    monkeypatch.setattr(module.metadata, "version", lambda package: "13.5.0")
    return module.opened(0, True)


def _real_cudart() -> bool:
    try:
        importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return False
    return True


def test_cuda_python_device_copies_replays_and_frees(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCudart()
    with cudart_device(monkeypatch, fake) as gpu:
        assert (gpu.info.name, gpu.info.pci_bus_id, gpu.info.versions["cuda-driver"]) == (
            "Fake T4",
            "0000:3b:00.0",
            "13.1",
        )
        stream, source, target = gpu.stream(), gpu.pinned((2, 3), "int32"), gpu.pinned((2, 3), "int32")
        address = gpu.allocate(source.nbytes)

        def launch() -> None:
            gpu.upload(address, source, stream)
            gpu.download(target, address, stream)

        source[:], target[:] = np.arange(6).reshape(2, 3), 0
        replay = gpu.capture(stream, launch)
        assert target.tolist() == [[0, 0, 0], [0, 0, 0]]  # captured, not executed
        replay()
        assert target.tolist() == source.tolist()
        gpu.record(gpu.event(), stream)
    assert fake.live == 0


def test_cuda_failures_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match=r"cannot open GPU 0: .*something fake \(cudaErrorFake\).*CUDA_VISIBLE"):
        cudart_device(monkeypatch, FakeCudart(broken="cudaSetDevice")).__enter__()
    fake = FakeCudart(broken="cudaStreamEndCapture")
    with pytest.raises(BuildError, match="something fake"), cudart_device(monkeypatch, fake) as gpu:
        gpu.capture(gpu.stream(), lambda: None)
    assert fake.live == 0


class FakeDriver:
    """The functions of the driver library that graphs need; `broken` answers an error."""

    def __init__(self, broken: str = "") -> None:
        self.broken, self.calls = broken, list[str]()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            return 700 if name == self.broken else 0

        return call


def test_a_pycuda_graph_is_captured_replayed_and_destroyed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDriver()
    monkeypatch.setattr(driver_graph, "library", lambda: fake)
    replay, destroy = driver_graph.capture(7, lambda: fake.calls.append("launch"))
    replay()
    destroy()
    assert fake.calls == [
        *("cuStreamBeginCapture_v2", "launch", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphDestroy"),
        *("cuGraphLaunch", "cuGraphExecDestroy"),
    ]


@pytest.mark.parametrize("broken", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_a_pycuda_graph_that_cannot_be_captured_is_explained(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    fake = FakeDriver(broken)
    monkeypatch.setattr(driver_graph, "library", lambda: fake)
    with pytest.raises(BuildError, match=r"cannot be captured .* \(CUresult 700\); time without CUDA graph"):
        driver_graph.capture(7, lambda: None)


def test_a_pycuda_graph_that_cannot_be_launched_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDriver("cuGraphLaunch")
    monkeypatch.setattr(driver_graph, "library", lambda: fake)
    replay, _ = driver_graph.capture(7, lambda: None)
    with pytest.raises(BuildError, match=r"cannot be launched: .* \(CUresult 700\)"):
        replay()
