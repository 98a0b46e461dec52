"""Latency of a torch module, with the same timing core: on a GPU by CUDA events and graphs, otherwise on the host.

Pure torch (no TensorRT, pycuda or cuda-python), so that the timing core can be proved on a real device by itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.bench.interleave import Progress
from engines.bench.workload import check_workload
from engines.bench_gpu.clock import HostClock
from engines.bench_gpu.nvml import Telemetry, telemetry
from engines.bench_gpu.report import Measured, benchmark
from engines.bench_gpu.settings import GpuBenchSettings
from engines.bench_gpu.timing import GpuContestant, Lane, Launch, race
from engines.types import Feeds, Outputs
from qdq.errors import BuildError, ConfigError

if TYPE_CHECKING:
    import torch

DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def time_torch_module(
    module: torch.nn.Module, workload: Sequence[Feeds], settings: GpuBenchSettings, progress: Progress | None = None
) -> dict[str, Any]:
    """Time ``module(**feeds)`` and return the benchmark.json object, with one contestant named torch-<type>.

    With torch.cuda the module must already be on GPU `settings.device`; without it, it is timed on the host: CUDA
    graph, spin wait, transfers and streams then mean nothing, and `gpu` is null in the report. The module is put in
    evaluation mode. `workload` as for `bench_plans`; `progress` counts launches. Raises ConfigError for a bad workload
    or a module on another device, BuildError when a CUDA call fails (out of memory, a launch that cannot be captured)
    or outputs are not finite.
    """
    import torch

    check_workload(workload, settings.batch, settings.sequence)
    parameter = next(module.parameters())
    wanted = torch.device("cuda", settings.device) if torch.cuda.is_available() else torch.device("cpu")
    if parameter.device != wanted:
        raise ConfigError(
            f"the module is on {parameter.device}, the benchmark on {wanted}; move it with module.to(...)"
        )
    module.eval()
    name = f"torch-{DTYPES.get(str(parameter.dtype).removeprefix('torch.'), 'other')}"
    began = time.perf_counter_ns()
    on_gpu = wanted.type == "cuda"
    with torch.inference_mode(), _failures(name), _readings(wanted) as readings:
        entry = _on_gpu(name, module, workload[0], settings) if on_gpu else _on_host(name, module, workload[0])
        blocks = race([entry], workload, settings, readings.observe, progress)
        measured = Measured(
            engines={name: entry.engine},
            blocks=blocks,
            device=torch.cuda.get_device_name(wanted) if on_gpu else None,
            clock="CUDA events" if on_gpu else "host",
            nvml=readings.report(),
            elapsed_s=(time.perf_counter_ns() - began) / 1e9,
        )
    return benchmark(measured, workload, settings, _versions())


def _on_host(name: str, module: torch.nn.Module, feeds: Feeds) -> GpuContestant:
    import torch

    inputs: dict[str, torch.Tensor] = {}
    results: dict[str, torch.Tensor] = {}

    def load(batch: Feeds) -> None:
        inputs.update({key: torch.from_numpy(array) for key, array in batch.items()})

    def launch() -> None:
        results.update(_tensors(module(**inputs)))

    load(feeds)
    return GpuContestant(name, "torch", (Lane(launch, HostClock()),), load, lambda: _float32(results))


def _on_gpu(name: str, module: torch.nn.Module, feeds: Feeds, settings: GpuBenchSettings) -> GpuContestant:
    lanes = [_TorchLane(module, feeds, settings) for _ in range(settings.streams)]

    def load(batch: Feeds) -> None:
        for lane in lanes:
            lane.load(batch)

    return GpuContestant(name, "torch", tuple(lane.lane for lane in lanes), load, lambda: _float32(lanes[0].results))


class _TorchLane:
    """A module on its own CUDA stream, reading from and writing to fixed memory, as a CUDA graph needs it."""

    def __init__(self, module: torch.nn.Module, feeds: Feeds, settings: GpuBenchSettings) -> None:
        import torch

        self._module, self._transfers = module, settings.transfers
        self._device = torch.device("cuda", settings.device)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._host = {key: torch.from_numpy(np.array(array)).pin_memory() for key, array in feeds.items()}
        self._inputs = {key: tensor.to(self._device) for key, tensor in self._host.items()}
        self._fetched: dict[str, torch.Tensor] = {}  # page-locked copies of the outputs, with transfers
        self.results: dict[str, torch.Tensor] = {}
        torch.cuda.synchronize(self._device)
        for _ in range(3):  # as PyTorch's notes ask before a capture: libraries set themselves up, memory is reserved
            self._eager()
        self._stream.synchronize()
        self.lane = Lane(self._captured() if settings.cuda_graph else self._eager, _TorchClock(self._stream, settings))

    def load(self, feeds: Feeds) -> None:
        """Put a batch into the input tensors, on the host and on the device, and wait for it."""
        import torch

        with torch.cuda.stream(self._stream):
            for key, array in feeds.items():
                self._host[key].copy_(torch.from_numpy(array))
                self._inputs[key].copy_(self._host[key], non_blocking=True)
        self._stream.synchronize()

    def _eager(self) -> None:
        import torch

        with torch.cuda.stream(self._stream):
            self._issue()

    def _issue(self) -> None:
        import torch

        if self._transfers:
            for key, tensor in self._host.items():
                self._inputs[key].copy_(tensor, non_blocking=True)
        self.results = _tensors(self._module(**self._inputs))
        if not self._transfers:
            return
        for key, tensor in self.results.items():
            if key not in self._fetched:
                self._fetched[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._fetched[key].copy_(tensor, non_blocking=True)

    def _captured(self) -> Launch:
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._issue()

        def replay() -> None:
            with torch.cuda.stream(self._stream):
                graph.replay()

        return replay


class _TorchClock:
    """CUDA events on a torch stream (an EventClock)."""

    def __init__(self, stream: torch.cuda.Stream, settings: GpuBenchSettings) -> None:
        self._stream, self._blocking = stream, not settings.spin_wait

    def event(self) -> Any:
        import torch

        return torch.cuda.Event(enable_timing=True, blocking=self._blocking)  # type: ignore[no-untyped-call]

    def record(self, event: Any) -> None:
        event.record(self._stream)

    def elapsed(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end))

    def synchronize(self, event: Any) -> None:
        event.synchronize()


def _tensors(output: Any) -> dict[str, torch.Tensor]:
    """The tensors of a module's output: one, a sequence, or a mapping such as transformers' ModelOutput."""
    import torch

    if isinstance(output, torch.Tensor):
        return {"output": output}
    named = output.items() if isinstance(output, Mapping) else ((f"output_{i}", one) for i, one in enumerate(output))
    return {name: value for name, value in named if isinstance(value, torch.Tensor)}


def _float32(results: Mapping[str, torch.Tensor]) -> Outputs:
    return {name: tensor.float().cpu().numpy() for name, tensor in results.items()}


@contextmanager
def _failures(name: str) -> Iterator[None]:
    """Say what failed and what to try where torch only names a CUDA error."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
        raise BuildError(
            f"{name} cannot be timed: {str(error).splitlines()[0]}; try without CUDA graph, or a smaller batch"
        ) from error


def _readings(device: torch.device) -> AbstractContextManager[Telemetry]:
    import torch

    if device.type == "cpu":
        return nullcontext(Telemetry(None, None, "timed on the host"))
    return telemetry(uuid=f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def _versions() -> dict[str, str]:
    import torch

    cuda = {"cuda": torch.version.cuda} if torch.version.cuda else {}
    return {"torch": torch.__version__, "numpy": metadata.version("numpy"), **cuda}
