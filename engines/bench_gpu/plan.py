"""A TensorRT plan on an opened device: shapes checked against its profile, buffers bound, launches ready to be timed.

Uses `tensorrt` itself rather than polygraphy, whose runner copies inputs and outputs inside every call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bench_gpu.device import Device, DeviceClock, Replay
from engines.bench_gpu.settings import GpuBenchSettings
from engines.bench_gpu.timing import GpuContestant, Lane
from engines.packed import packing_beside
from qdq.base.types import Feeds, Outputs
from qdq.errors import BuildError, ConfigError

Shape = tuple[int, ...]
# TensorRT's type name -> numpy's. BF16, which numpy has not, travels as its 16 bits.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "uint16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class Tensor:
    """One input or output of a plan: page-locked host memory of its exact shape, and its device address."""

    name: str
    dtype: str  # TensorRT's spelling
    host: NDArray[Any]
    address: int


class LoadedPlan:
    """A deserialized plan. Raises BuildError when this TensorRT or this GPU cannot load it."""

    def __init__(self, path: Path, trt: Any) -> None:
        self.path, self._trt = path, trt
        try:
            serialized = path.read_bytes()
        except OSError as error:
            raise BuildError(f"{path} cannot be read ({error.strerror}); build the engine first") from error
        self._logger = trt.Logger()  # prints TensorRT's warnings and errors to standard error
        trt.init_libnvinfer_plugins(self._logger, "")
        self._runtime = trt.Runtime(self._logger)
        engine = self._runtime.deserialize_cuda_engine(serialized)
        if engine is None:
            raise BuildError(
                f"TensorRT {trt.__version__} cannot load {path} (its message is above); a plan runs only with the "
                "TensorRT version and on the GPU model that built it: build it again on this machine"
            )
        self.engine = engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]

    def shapes_for(self, feeds: Feeds) -> dict[str, Shape]:
        """The shape of every input of the plan in `feeds`. Raises ConfigError naming an input that is not there."""
        absent = [name for name in self.inputs if name not in feeds]
        if absent and (form := packing_beside(self.path)) is not None:
            raise ConfigError(
                f"{self.path}: its batch has the {form.form} form, which this benchmark does not feed; 'qdq bench' "
                "does, packing and copies included"
            )
        if absent:
            raise ConfigError(
                f"{self.path} has an input '{absent[0]}' the benchmark text does not feed (it has "
                f"{', '.join(sorted(feeds))}); tokenize for the model this plan was built from"
            )
        return {name: feeds[name].shape for name in self.inputs}

    def profile_for(self, shapes: Mapping[str, Shape]) -> int:
        """The first optimization profile that holds `shapes`. Raises ConfigError naming the range that does not."""
        engine, outside = self.engine, ""
        for index in range(engine.num_optimization_profiles):
            ranges = {name: tuple(map(tuple, engine.get_tensor_profile_shape(name, index))) for name in shapes}
            misfit = next((name for name, shape in shapes.items() if not _within(shape, *ranges[name])), None)
            if misfit is None:
                return index
            low, best, high = map(_text, ranges[misfit])
            outside = outside or (
                f"{self.path}: input '{misfit}' is {_text(shapes[misfit])}, its profile goes from {low} to {high} "
                f"(tuned for {best}); choose a batch and sequence inside, or build the plan for this shape"
            )
        raise ConfigError(outside)


class PlanLane:
    """One execution context of a plan on its own stream, with its own buffers."""

    def __init__(self, plan: LoadedPlan, device: Device, feeds: Feeds, settings: GpuBenchSettings) -> None:
        self._plan, self._device, self._transfers = plan, device, settings.transfers
        self._stream = device.stream()
        shapes = plan.shapes_for(feeds)
        profile = plan.profile_for(shapes)
        context = plan.engine.create_execution_context()
        if context is None:
            raise BuildError(
                f"{plan.path}: not enough GPU memory for {settings.streams} streams; use fewer or a smaller batch"
            )
        if profile and not context.set_optimization_profile_async(profile, self._stream.handle):
            raise BuildError(f"{plan.path}: TensorRT refuses optimization profile {profile}; its message is above")
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise BuildError(
                    f"{plan.path}: TensorRT refuses shape {_text(shape)} of '{name}'; its message is above"
                )
        self._context = context
        self._inputs = [self._tensor(name) for name in plan.inputs]
        self._outputs = [self._tensor(name) for name in plan.outputs]
        self.load(feeds)
        self._issue()  # the first launch also sets up the context, which cannot be captured
        device.synchronize(self._stream)
        launch: Replay = device.capture(self._stream, self._issue) if settings.cuda_graph else self._issue
        self.lane = Lane(launch, DeviceClock(device, self._stream))

    def load(self, feeds: Feeds) -> None:
        """Put a batch into the input buffers, on the host and on the device, and wait for it."""
        for tensor in self._inputs:
            np.copyto(tensor.host, feeds[tensor.name], casting="same_kind")  # int64 ids narrow to the plan's int32
            self._device.upload(tensor.address, tensor.host, self._stream)
        self._device.synchronize(self._stream)

    def outputs(self) -> Outputs:
        """Results of the last launch, float32, owned by the caller."""
        for tensor in self._outputs:
            self._device.download(tensor.host, tensor.address, self._stream)
        self._device.synchronize(self._stream)
        return {tensor.name: _float32(tensor) for tensor in self._outputs}

    def _issue(self) -> None:
        if self._transfers:
            for tensor in self._inputs:
                self._device.upload(tensor.address, tensor.host, self._stream)
        if not self._context.execute_async_v3(self._stream.handle):
            raise BuildError(f"{self._plan.path} cannot be launched; TensorRT's message is above")
        if self._transfers:
            for tensor in self._outputs:
                self._device.download(tensor.host, tensor.address, self._stream)

    def _tensor(self, name: str) -> Tensor:
        context, engine = self._context, self._plan.engine
        shape = tuple(context.get_tensor_shape(name))
        dtype = engine.get_tensor_dtype(name).name
        if dtype not in DTYPES or any(size < 1 for size in shape):
            raise BuildError(
                f"{self._plan.path}: tensor '{name}' is {dtype} {_text(shape)}, which cannot be bound here"
            )
        host = self._device.pinned(shape, DTYPES[dtype])
        tensor = Tensor(name, dtype, host, self._device.allocate(host.nbytes))
        if not context.set_tensor_address(name, tensor.address):
            raise BuildError(f"{self._plan.path}: TensorRT refuses the buffer of '{name}'; its message is above")
        return tensor


def contestant(name: str, plan: LoadedPlan, device: Device, feeds: Feeds, settings: GpuBenchSettings) -> GpuContestant:
    """`plan` with one lane per stream. Raises as LoadedPlan and PlanLane do."""
    lanes = [PlanLane(plan, device, feeds, settings) for _ in range(settings.streams)]

    def load(batch: Feeds) -> None:
        for lane in lanes:
            lane.load(batch)

    return GpuContestant(name, "tensorrt", tuple(lane.lane for lane in lanes), load, lanes[0].outputs)


def _within(shape: Shape, low: Shape, best: Shape, high: Shape) -> bool:
    """True when `shape` lies in the range; `best` is only what it was tuned for."""
    return len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) if shape else "scalar"


def _float32(tensor: Tensor) -> NDArray[np.float32]:
    if tensor.dtype == "BF16":  # the upper half of a float32
        return (tensor.host.astype(np.uint32) << 16).view(np.float32)
    return np.array(tensor.host, dtype=np.float32)
