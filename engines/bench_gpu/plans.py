"""TensorRT plans of one model in FP32, FP16 and INT8, raced on this machine's GPU."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any

from engines.bench.workload import check_workload
from engines.bench_gpu.device import Device
from engines.bench_gpu.nvml import telemetry
from engines.bench_gpu.plan import LoadedPlan, contestant
from engines.bench_gpu.report import Measured, benchmark
from engines.bench_gpu.settings import GpuBenchSettings
from engines.bench_gpu.timing import race
from engines.bench_gpu.trtexec import MAJORS, trtexec_line
from engines.tensorrt.availability import probe
from qdq.base.types import Feeds, Progress
from qdq.errors import ConfigError, Unavailable

FLOATS = ("fp32", "fp16", "bf16")  # plans of these names become the contestants tensorrt-fp32, …
INSTALL = (
    "pip install pycuda (needs the CUDA toolkit's headers) or pip install 'cuda-bindings>=12' (needs the driver only)"
)


def bench_plans(
    plans: Mapping[str, Path],
    workload: Sequence[Feeds],
    settings: GpuBenchSettings,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Race `plans` (name such as int8, fp16 or fp32 -> plan file) and return the benchmark.json object.

    `workload`: batches of [settings.batch, settings.sequence] token ids (multiple choice [batch, choices, sequence]).
    `progress` counts launches. Times are milliseconds. Raises Unavailable naming what this machine lacks, ConfigError
    for a bad line-up or workload or shapes outside a plan's profile, BuildError for a plan that cannot be loaded or
    run here or whose outputs are not finite.
    """
    if not plans:
        raise ConfigError("the GPU benchmark has no plans; give it at least one, such as --engine model.plan")
    check_workload(workload, settings.batch, settings.sequence)
    require_gpu()
    with open_device(settings.device, settings.spin_wait) as device:
        return _race_on(device, plans, workload, settings, progress)


def require_gpu() -> None:
    """Raise Unavailable naming everything this machine lacks to time a plan."""
    if missing := probe().missing:
        obstacles = "".join(f"\n  - {sentence}" for sentence in missing)
        raise Unavailable(f"this machine cannot time a TensorRT plan:{obstacles}")


def open_device(index: int = 0, spin: bool = True) -> AbstractContextManager[Device]:
    """GPU `index` of those this process may see, through pycuda or else cuda-python, until the `with` block ends.

    `spin`: waiting polls, otherwise it blocks the thread. Raises Unavailable when neither binding can be imported or
    there is no such GPU, BuildError when a CUDA call fails inside the block.
    """
    try:
        from engines.bench_gpu import device_pycuda

        return device_pycuda.opened(index, spin)
    except ImportError as error:
        no_pycuda = str(error)
    try:
        from engines.bench_gpu import device_cudart

        return device_cudart.opened(index, spin)
    except ImportError as error:
        raise Unavailable(
            f"no Python binding of CUDA can be imported (pycuda: {no_pycuda}; cuda-python: {error}); {INSTALL}"
        ) from error


def _race_on(
    device: Device,
    plans: Mapping[str, Path],
    workload: Sequence[Feeds],
    settings: GpuBenchSettings,
    progress: Progress | None,
) -> dict[str, Any]:
    """Time the plans on an opened device. Engines and contexts die with this function, before the device is closed."""
    import tensorrt as trt

    # All plans are loaded before the first is timed, because they take turns; float ones are named as on the CPU.
    began = time.perf_counter_ns()
    loaded = {f"tensorrt-{name}" if name in FLOATS else name: LoadedPlan(path, trt) for name, path in plans.items()}
    contestants = [contestant(name, plan, device, workload[0], settings) for name, plan in loaded.items()]
    # The equivalent commands, with the plan's file name only: paths differ by machine.
    trtexec = {
        name: {
            str(major): trtexec_line(Path(plan.path.name), plan.shapes_for(workload[0]), settings, major)
            for major in MAJORS
        }
        for name, plan in loaded.items()
    }
    # The last reading of clocks and temperature is taken right after the last launch.
    with telemetry(device.info.pci_bus_id) as readings:
        blocks = race(contestants, workload, settings, readings.observe, progress)
        measured = Measured(
            engines={entry.name: entry.engine for entry in contestants},
            blocks=blocks,
            device=device.info.name,
            nvml=readings.report(),
            elapsed_s=(time.perf_counter_ns() - began) / 1e9,
            trtexec=trtexec,
        )
    versions = {"tensorrt": trt.__version__, "numpy": metadata.version("numpy"), **device.info.versions}
    return benchmark(measured, workload, settings, versions)
