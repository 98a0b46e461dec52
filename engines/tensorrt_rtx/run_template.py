"""Run and time the TensorRT for RTX plan beside this file.

Needs an NVIDIA RTX GPU with its driver, numpy, and TensorRT for RTX of the version that built the plan: either
NVIDIA's own package, or the two that the plan was built with, which have no other dependencies (INSTALL, below).
The first run compiles the kernels for this GPU (seconds); later ones take them from the cache beside the plan.

Exit status: 0 done, 1 the run failed, 2 wrong usage, 3 this machine lacks the GPU or TensorRT for RTX.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.util
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

# begin values of this model
PLAN, CACHE = "model.rtx", "model.rtx.cache"
VERSION = "1.7.1.116"
CAPABILITIES = [75, 80, 86, 89, 120, 121]
INPUTS: dict[str, list[int | str]] = {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "sequence"]}
RANGES: dict[str, list[int]] = {"batch": [1, 40, 40], "sequence": [1, 128, 128]}  # axis: min, opt, max
ROWS: dict[str, int] = {"input_ids": 30522}  # rows of the table that an input looks up; other inputs are masks
PACKING: dict[str, Any] | None = None  # of a plan whose batch is not padded, for packing.py beside this file
INSTALL = "pip install numpy tensorrt-rtx-cu12-bindings==1.7.1.116 onnxruntime-ep-nv-tensorrt-rtx-cu12==0.5.0"
# end values of this model

HERE = Path(__file__).resolve().parent
WARM_UP_RUNS = 10
RUNS_FOR_P99 = 100  # fewer say nothing about the slowest hundredth
MAJOR, MINOR = 75, 76  # CUdevice_attribute: the two parts of the compute capability
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


def fail(status: int, message: str) -> NoReturn:
    """Print one message and end."""
    print(f"run_engine: {message}", file=sys.stderr)
    raise SystemExit(status)


class Gpu:
    """The first NVIDIA GPU, through the functions of its driver library alone."""

    def __init__(self) -> None:
        name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
        try:
            self._driver = ctypes.CDLL(name)
        except OSError:
            fail(3, f"the driver library {name} is not there; run this on a machine with an NVIDIA RTX GPU")
        if status := self._driver.cuInit(0):
            fail(3, f"the NVIDIA driver answered error {status}; check nvidia-smi")
        count, device = ctypes.c_int(), ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        if count.value == 0:
            fail(3, "the driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES")
        # What it is, then its primary context, the one that TensorRT uses.
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        text, major, minor = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
        self._call("cuDeviceGetName", text, len(text), device)
        self._call("cuDeviceGetAttribute", ctypes.byref(major), MAJOR, device)
        self._call("cuDeviceGetAttribute", ctypes.byref(minor), MINOR, device)
        self.name = text.value.decode(errors="replace")
        self.capability = 10 * major.value + minor.value
        context, stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(stream), NON_BLOCKING)
        self._stream, self.stream = stream, int(stream.value or 0)

    def _call(self, function: str, *arguments: Any) -> None:
        if status := getattr(self._driver, function)(*arguments):
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(text))
            fail(1, f"{function}: {(text.value or b'unknown error').decode()} ({status})")

    def allocate(self, size: int) -> int:
        """Address of `size` bytes, which are freed with the process."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def upload(self, array: Any) -> int:
        """Copy a contiguous array to the GPU; its address there."""
        address, source = self.allocate(array.nbytes), ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), source, ctypes.c_size_t(array.nbytes))
        self._call("cuCtxSynchronize")  # the copy may return before it has arrived, and our stream waits for no other
        return address

    def download(self, array: Any, address: int) -> None:
        """Copy from the GPU into a contiguous array."""
        target = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyDtoH_v2", target, ctypes.c_uint64(address), ctypes.c_size_t(array.nbytes))

    def wait(self) -> None:
        """Return when everything launched so far is done."""
        self._call("cuStreamSynchronize", self._stream)

    def event(self) -> Any:
        """A point in time on the GPU, to be recorded."""
        event = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(event), 0)
        return event

    def record(self, event: Any) -> None:
        """Put the event behind what was launched so far."""
        self._call("cuEventRecord", event, self._stream)

    def milliseconds(self, start: Any, end: Any) -> float:
        """Time between two recorded events, once the second has happened."""
        found = ctypes.c_float()
        self._call("cuEventSynchronize", end)
        self._call("cuEventElapsedTime", ctypes.byref(found), start, end)
        return found.value


def parse_options() -> argparse.Namespace:
    """Command line; the defaults are the shape that the plan was made for."""
    arguments = argparse.ArgumentParser(description="Run and time the TensorRT for RTX plan beside this file.")
    arguments.add_argument("--plan", type=Path, default=HERE / PLAN, help=f"plan to load (default: {PLAN})")
    for axis, (low, best, high) in RANGES.items():
        arguments.add_argument(f"--{axis}", type=int, metavar="N", help=f"{low} to {high} (default: {best})")
    arguments.add_argument("--inputs", type=Path, metavar="FILE.npz", help="arrays by input name (default: random ids)")
    arguments.add_argument("--seconds", type=float, default=5.0, help="time to measure for (default: %(default)s)")
    arguments.add_argument("--outputs", type=Path, metavar="FILE.npz", help="where to write the outputs of one run")
    arguments.add_argument("--cache", type=Path, default=HERE / CACHE, help=f"compiled kernels (default: {CACHE})")
    options = arguments.parse_args()
    # Refuse what would only be refused on the GPU.
    for axis, (low, best, high) in RANGES.items():
        size = getattr(options, axis)
        if size is not None and options.inputs:
            arguments.error(f"--{axis}: the arrays of --inputs have a shape of their own; give one of the two")
        if not low <= (best if size is None else size) <= high:
            arguments.error(f"--{axis}: the plan takes {low} to {high}, found {size}")
    if not options.seconds > 0:
        arguments.error("--seconds: expected more than 0")
    return options


def import_runtime() -> Any:
    """TensorRT's Python module: NVIDIA's whole package, or the bindings with the libraries of ONNX Runtime's."""
    found = importlib.util.find_spec
    if not found("numpy"):
        fail(3, f"numpy is not installed: {INSTALL}")
    libraries = found("onnxruntime_ep_nv_tensorrt_rtx")
    try:
        if found("tensorrt_rtx"):
            return importlib.import_module("tensorrt_rtx")
        if libraries and libraries.submodule_search_locations and found("tensorrt_rtx_bindings"):
            folder = Path(libraries.submodule_search_locations[0])
            for library in sorted(folder.glob("libtensorrt_rtx.so*")) + sorted(folder.glob("*onnxparser_rtx.so*")):
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            return importlib.import_module("tensorrt_rtx_bindings")
    except (ImportError, OSError) as problem:
        fail(3, f"TensorRT for RTX cannot be loaded ({problem}); install it anew: {INSTALL}")
    fail(3, f"TensorRT for RTX is not installed: {INSTALL}")


def load(trt: Any, runtime: Any, gpu: Gpu, plan: Path) -> Any:
    """The engine, or the end of this program with the reason why TensorRT refuses the plan."""
    try:
        content = plan.read_bytes()
    except OSError as problem:
        fail(1, f"{plan} cannot be read ({problem.strerror}); copy the whole folder, or name the plan with --plan")
    engine = runtime.deserialize_cuda_engine(content)
    if engine is not None:
        return engine
    _, diagnostics = runtime.get_engine_validity(content)
    known = trt.EngineInvalidityDiagnostics.__members__.items()
    reasons = ", ".join(name for name, member in known if diagnostics & int(member)) or "no reason given"
    fail(
        3 if trt.__version__ != VERSION or gpu.capability not in CAPABILITIES else 1,
        f"TensorRT for RTX {trt.__version__} on {gpu.name} (compute capability {gpu.capability}) refuses {plan}: "
        f"{reasons}. It was built by {VERSION} for {CAPABILITIES}; with another version, compile the model again",
    )


def make_context(trt: Any, engine: Any, cache_file: Path) -> tuple[Any, Any, Any]:
    """An execution context, its cache of compiled kernels, and its configuration, which must live as long.

    Kernels for the very shape are compiled before it runs, not in the background while it is timed, and the whole
    engine is launched as one CUDA graph.
    """
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    cache = config.create_runtime_cache()
    if cache_file.is_file() and not cache.deserialize(cache_file.read_bytes()):
        print(f"run_engine: {cache_file} is of another GPU, driver or version, and is replaced", file=sys.stderr)
    config.set_runtime_cache(cache)
    context = engine.create_execution_context(config)
    if context is None:
        fail(1, "TensorRT makes no execution context; see its message above, a full GPU memory is the usual reason")
    return context, cache, config


def feeds_for(trt: Any, engine: Any, options: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """Arrays for the inputs of the engine, in its types: those of --inputs, or random ids and masks of ones.

    Of a plan whose batch is not padded these are packed; the second result then reads its outputs.
    """
    import numpy as np

    names = tensors(trt, engine, trt.TensorIOMode.INPUT)
    padded = list(INPUTS) if PACKING else names
    arrays = read_arrays(options.inputs, padded) if options.inputs else random_arrays(options, padded)
    batch = pack(arrays) if PACKING else None
    types = {name: trt.nptype(engine.get_tensor_dtype(name)) for name in names}
    given = batch.feeds if batch else arrays
    return {name: np.ascontiguousarray(given[name], dtype=kind) for name, kind in types.items()}, batch


def pack(arrays: dict[str, Any]) -> Any:
    """The batch as the plan takes it, by packing.py beside this file."""
    sys.path.insert(0, str(HERE))
    try:
        packing = importlib.import_module("packing")
    except ImportError:
        fail(1, f"packing.py is not in {HERE}; copy the whole folder")
    try:
        return packing.Packing(**(PACKING or {})).pack(arrays)
    except packing.PackingError as problem:
        fail(1, f"the batch does not fit the plan: {problem}")


def read_arrays(file: Path, names: list[str]) -> dict[str, Any]:
    """The arrays of a file, once every input is there and no id lies beyond its table."""
    import numpy as np

    try:
        with np.load(file) as archive:
            arrays = dict(archive)
    except (OSError, ValueError, TypeError) as problem:
        fail(1, f"{file} cannot be read ({problem}); write it with numpy.savez")
    for name in names:
        if name not in arrays:
            fail(1, f"{file} has no array '{name}'; it has {', '.join(arrays) or 'none'}")
        if name in ROWS and not 0 <= arrays[name].min() <= arrays[name].max() < ROWS[name]:
            fail(1, f"{file}: '{name}' must be ids from 0 to {ROWS[name] - 1}; tokenize with the model's tokenizer")
    return arrays


def random_arrays(options: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Ids within the vocabulary, the same in every run, and masks of ones."""
    import numpy as np

    chance = np.random.default_rng(0)
    sizes = {axis: getattr(options, axis) or best for axis, (_, best, _) in RANGES.items()}
    shapes = {name: [sizes[axis] if isinstance(axis, str) else axis for axis in INPUTS[name]] for name in names}
    made = {
        name: chance.integers(0, ROWS[name], shape) if name in ROWS else np.ones(shape, np.int64)
        for name, shape in shapes.items()
    }
    if PACKING:  # texts of all lengths around the usual one
        shape = made["attention_mask"].shape
        usual = min(PACKING["tokens"] / PACKING["texts"], shape[-1])
        lengths = np.minimum(chance.integers(1, max(int(2 * usual), 2), shape[:-1]), shape[-1])
        made["attention_mask"] = (np.arange(shape[-1]) < lengths[..., None]).astype(np.int64)
    return made


def tensors(trt: Any, engine: Any, mode: Any) -> list[str]:
    """Names of the inputs or outputs of the engine."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return [name for name in names if engine.get_tensor_mode(name) == mode]


def bind(trt: Any, gpu: Gpu, context: Any, feeds: dict[str, Any]) -> dict[str, tuple[Any, int]]:
    """Copy the inputs to the GPU and reserve room for the outputs: (array, address) of each output."""
    import numpy as np

    for name, array in feeds.items():
        if not context.set_input_shape(name, array.shape):
            fail(1, f"input '{name}' cannot have shape {array.shape}; the plan takes {RANGES}")
        context.set_tensor_address(name, gpu.upload(array))
    if lacking := context.infer_shapes():
        fail(1, f"the shapes of {', '.join(lacking)} are not known")
    outputs = {}
    for name in tensors(trt, context.engine, trt.TensorIOMode.OUTPUT):
        array = np.empty(tuple(context.get_tensor_shape(name)), trt.nptype(context.engine.get_tensor_dtype(name)))
        outputs[name] = (array, gpu.allocate(array.nbytes))
        context.set_tensor_address(name, outputs[name][1])
    return outputs


def run(gpu: Gpu, context: Any) -> None:
    """Launch the engine once."""
    if not context.execute_async_v3(gpu.stream):
        fail(1, "the engine did not run; see TensorRT's message above")


def measure(gpu: Gpu, context: Any, seconds: float) -> list[float]:
    """Milliseconds of each run on the GPU, one after another, copies of inputs and outputs not included."""
    start, end = gpu.event(), gpu.event()
    found: list[float] = []
    for _ in range(WARM_UP_RUNS):
        run(gpu, context)
    gpu.wait()
    until = time.monotonic() + seconds
    while not found or time.monotonic() < until:
        gpu.record(start)
        run(gpu, context)
        gpu.record(end)
        found.append(gpu.milliseconds(start, end))
    return found


def summary(times: list[float], batch: int) -> str:
    """Percentiles by the nearest rank, and sequences per second at the median."""
    ordered = sorted(times)
    p50, p90, p99 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.9, 0.99))
    last = f"{p99:.3f} ms" if len(ordered) >= RUNS_FOR_P99 else f"- (needs {RUNS_FOR_P99} runs)"
    return f"p50 {p50:.3f} ms, p90 {p90:.3f} ms, p99 {last}, {len(times)} runs, {1000 * batch / p50:.1f} sequences/s"


def write(path: Path, save: Any) -> None:
    """Let `save` write to a temporary name, then rename: a killed run leaves no half file that looks whole."""
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        with partial.open("wb") as handle:
            save(handle)
        os.replace(partial, path)
    except OSError as problem:
        fail(1, f"cannot write {path}: {problem.strerror}")
    finally:
        partial.unlink(missing_ok=True)


def main() -> int:
    """Load, feed, run once, measure; then write outputs and cache."""
    options = parse_options()
    trt = import_runtime()
    import numpy as np

    gpu = Gpu()
    print(f"{gpu.name}, TensorRT for RTX {trt.__version__}", flush=True)
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    engine = load(trt, runtime, gpu, options.plan)
    context, cache, config = make_context(trt, engine, options.cache)
    feeds, batch = feeds_for(trt, engine, options)
    outputs = bind(trt, gpu, context, feeds)
    began = time.monotonic()
    run(gpu, context)
    gpu.wait()
    print(f"first run {time.monotonic() - began:.1f} s, compiling included", flush=True)
    for array, address in outputs.values():
        gpu.download(array, address)
    if options.outputs:
        found = {name: array for name, (array, _) in outputs.items()}
        answers = batch.unpack(found) if batch else found
        write(options.outputs, lambda handle: np.savez(handle, **answers))
        print(f"wrote {options.outputs}")
    shape = next(iter(feeds.values())).shape
    texts = batch.shape[0] if batch else shape[0]
    taken = f"{texts} texts as {' x '.join(map(str, shape))}" if batch else " x ".join(map(str, shape))
    print(f"{taken}: {summary(measure(gpu, context, options.seconds), texts)}")
    write(options.cache, lambda handle: handle.write(cache.serialize()))
    del context, config, engine, runtime  # in this order
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
