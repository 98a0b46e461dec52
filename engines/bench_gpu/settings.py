"""Settings of a GPU benchmark: shape, extent, and the way launches are made and waited for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from engines.bench.interleave import MIN_SAMPLES
from qdq.errors import ConfigError


@dataclass(frozen=True)
class GpuBenchSettings:
    """Shape and extent of a GPU benchmark. Raises ConfigError for values that cannot be measured.

    warmup, iterations: launches of every contestant on each stream, before and inside the measurement.
    block: launches of one contestant before the next one has its turn.
    in_flight: launches a stream holds at once. 2, as trtexec does: the next launch is queued while this one runs, so a
        sample is GPU time alone. 1: every launch waits for the one before; a sample then also holds the time the GPU
        waits for the host, which is what a lone request feels.
    cuda_graph: record one launch and replay it, so that the host issues one call instead of hundreds.
    spin_wait: poll for the end of a launch; False blocks the thread, which frees a CPU core and reacts later.
    transfers: copies of inputs to the GPU and outputs back are part of a launch.
    """

    batch: int = 40
    sequence: int = 128
    warmup: int = 100
    iterations: int = 1000
    block: int = 50
    streams: int = 1
    in_flight: int = 2
    cuda_graph: bool = True
    spin_wait: bool = True
    transfers: bool = False
    device: int = 0  # index among the GPUs this process may see

    def __post_init__(self) -> None:
        least = {"batch": 1, "sequence": 1, "warmup": 1, "iterations": MIN_SAMPLES, "block": 1, "streams": 1}
        for name, minimum in {**least, "device": 0}.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"GPU benchmark {name} is {getattr(self, name)}; it must be at least {minimum}")
        if self.in_flight not in (1, 2):
            raise ConfigError(
                f"GPU benchmark in_flight is {self.in_flight}; choose 1 (lone requests) or 2 (as trtexec)"
            )

    def as_json(self) -> dict[str, Any]:
        """The settings as recorded under ``gpu`` in the report; batch and sequence stand at its top level."""
        return {name: value for name, value in asdict(self).items() if name not in ("batch", "sequence")}
