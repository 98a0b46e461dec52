"""The GPUs a latency can be estimated for: datasheet figures, each with its public source."""

from __future__ import annotations

from dataclasses import dataclass

from qdq.base.config import nearest
from qdq.errors import ConfigError

SMALL_BOARD_W = 75  # boards fed by the slot alone; under load their power limit, not their clock, sets the pace


@dataclass(frozen=True)
class Device:
    """One GPU. Peaks are dense (no 2:4 sparsity) and belong to `boost_mhz`; bandwidth and L2 are decimal units."""

    name: str  # what --device takes
    title: str
    compute_capability: int  # 75 for 7.5: the SM number the linter's fusion map takes
    multiprocessors: int
    boost_mhz: int
    int8_tops: float  # tensor cores
    float16_tflops: float  # tensor cores
    float32_tflops: float  # what TensorRT uses for FP32 by default: TF32 tensor cores, or CUDA cores before Ampere
    bandwidth_gb_s: float
    l2_mb: float
    board_w: int
    source: str

    @property
    def has_tf32(self) -> bool:
        """True when FP32 matrix products run on tensor cores (Ampere and later)."""
        return self.compute_capability >= 80

    def peak(self, precision: str) -> float:
        """Operations per second at the boost clock, for int8, float16 (or bfloat16) and float32."""
        tera = {"int8": self.int8_tops, "float32": self.float32_tflops}.get(precision, self.float16_tflops)
        return tera * 1e12


# Order of the figures: SMs, boost MHz, INT8 TOPS, FP16, FP32 (TF32) TFLOPS, GB/s, L2 MB, W. Tensor peaks are
# SMs x operations per clock x boost clock, which a test recomputes: 1024 FP16 per SM and clock (Turing, Ada), 2048
# (Ampere), 4096 (Hopper), twice that in INT8.
DEVICES: tuple[Device, ...] = (
    Device(
        "t4", "NVIDIA T4 (16 GB)", 75, 40, 1590, 130, 65, 8.1, 320, 4, 70,
        "NVIDIA T4 datasheet; Turing architecture whitepaper (TU104: 40 SMs on the T4, 4 MB L2)",
    ),
    Device(
        "a100", "NVIDIA A100 (40 GB)", 80, 108, 1410, 624, 312, 156, 1555, 40, 400,
        "NVIDIA A100 datasheet (SXM4 40 GB); A100 architecture whitepaper (108 SMs, 40 MB L2)",
    ),
    Device(
        "a30", "NVIDIA A30 (24 GB)", 80, 56, 1440, 330, 165, 82, 933, 24, 165,
        "NVIDIA A30 datasheet; A100 architecture whitepaper for the SM (56 SMs, 24 MB L2)",
    ),
    Device(
        "l4", "NVIDIA L4 (24 GB)", 89, 58, 2040, 242, 121, 60, 300, 48, 72,
        "NVIDIA L4 datasheet, half of its figures 'with sparsity'; Ada architecture whitepaper (58 SMs, 48 MB L2)",
    ),
    Device(
        "h200", "NVIDIA H200 SXM (141 GB)", 90, 132, 1830, 1979, 989, 494, 4800, 50, 700,
        "NVIDIA H200 datasheet, half of its figures 'with sparsity'; Hopper architecture whitepaper (132 SMs, L2)",
    ),
)  # fmt: skip


def find_device(name: str) -> Device:
    """The device called `name` (case does not matter). Raises ConfigError naming the nearest one."""
    for device in DEVICES:
        if device.name == name.lower():
            return device
    raise ConfigError(f"device: unknown value '{name}'; {nearest(name, [device.name for device in DEVICES])}")
