"""The trtexec command that measures what this benchmark measures, in the spelling of TensorRT 10.x or 11.x."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from engines.bench_gpu.settings import GpuBenchSettings
from qdq.errors import ConfigError

MAJORS = (10, 11)
WARM_UP_MS = 200  # trtexec's own default; it counts time, not launches


def trtexec_line(
    plan: Path,
    shapes: Mapping[str, Sequence[int]],
    settings: GpuBenchSettings,
    major: int,
    warm_up_ms: float = WARM_UP_MS,
) -> str:
    """One shell line for TensorRT `major` (10 or 11). `shapes`: input name -> shape; `warm_up_ms`: milliseconds.

    CUDA graph, spin wait and no transfers are off by default in 10.x and on in 11.x. trtexec fills inputs with random
    numbers, keeps two launches in flight unless told --exposeDMA, and gives transfers streams of their own, so with
    transfers its throughput is higher where copies overlap. Raises ConfigError for another major version.
    """
    if major not in MAJORS:
        raise ConfigError(f"no trtexec line for TensorRT {major}; this project supports {MAJORS[0]} and {MAJORS[1]}")
    listed = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
    options = [
        f"--loadEngine={plan}",
        f"--shapes={listed}",
        f"--iterations={settings.iterations}",
        "--duration=0",  # iterations decide, not the default of three seconds
        f"--warmUp={math.ceil(warm_up_ms)}",
        "--percentile=50,90,95,99",
    ]
    options += [f"--infStreams={settings.streams}"] * (settings.streams > 1)
    options += [f"--device={settings.device}"] * (settings.device > 0)
    options += ["--exposeDMA"] * (settings.in_flight == 1)
    switches = (
        ("--useCudaGraph", "--noCudaGraph", settings.cuda_graph),
        ("--useSpinWait", "--noSpinWait", settings.spin_wait),
        ("--noDataTransfers", "--includeDataTransfers", not settings.transfers),
    )
    for on, off, wanted in switches:
        if wanted == (major == 10):  # each release is told only what differs from its default
            options.append(on if wanted else off)
    return shlex.join(["trtexec", *options])
