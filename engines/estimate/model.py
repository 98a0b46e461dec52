"""The analytical model: how long one kernel takes on one device.

    time = overhead + max(compute, memory)

    compute = max( waves of tiles at the boost clock,  operations at the rate the board can sustain )
    memory  = bytes the L2 cannot hold / DRAM bandwidth  +  bytes it holds / L2 bandwidth

**Waves.** A matrix product [m,k] x [k,n] is cut into tiles of rows x columns, one tile per multiprocessor at a time, so
its time is `ceil(tiles / multiprocessors)` times that of one tile: small products leave multiprocessors idle. A tile
reaches `tensor_share` of the peak, less the smaller it is, because operands are reused along its edges only:
`edge / (edge + FRAGMENT)` with the harmonic mean of its two edges. TensorRT times many tile shapes and keeps the best;
here that is the minimum over `TILES`.

**Sustained rate.** A board limited to the slot's 75 W cannot feed its tensor cores at the boost clock: it runs at
`sustained_share` of the peak, whatever the shape. Larger boards show no such limit in the published rows.

Every term grows with batch, sequence, features and element size, so the estimate never falls when one of them grows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from engines.estimate.devices import SMALL_BOARD_W, Device
from engines.estimate.workload import ATTENTIONS, GEMMS, Op
from qdq.base.artifacts import read_json

DATA = Path(__file__).resolve().parent / "data"
COEFFICIENTS = DATA / "coefficients.json"
VALIDATION = DATA / "validation.json"

# Structure, set by hand and not fitted: round figures, see docs/estimate.md for how much they matter.
TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (64, 32), (32, 64), (32, 32))
FRAGMENT = 16  # edge of one tensor-core operand fragment
MEMORY_SHARE = 0.8  # of the datasheet bandwidth that streaming kernels reach
L2_SHARE = 0.5  # of the L2 that holds what the previous kernel wrote; the rest is weights on their way
L2_SPEEDUP = 3.0  # L2 bandwidth over DRAM bandwidth
ATTENTION_SHARE = 0.35  # of the peak, in attention: short products with a softmax between them


@dataclass(frozen=True)
class Coefficients:
    """Coefficients fitted on published rows (qdq.studies.estimate); shares are of the datasheet peak."""

    tensor_share: float  # reached by an endless tile at the boost clock
    sustained_share: float  # held by a small board's tensor cores under its power limit
    sustained_share_cuda: float  # held by a small board's CUDA cores (FP32 before Ampere)
    overhead_turing_us: float  # fixed time of a kernel, CUDA graph: launch, ramp, pipeline fill
    overhead_ampere_us: float  # the same from Ampere on, which copies to shared memory asynchronously


@lru_cache(maxsize=1)
def load_coefficients() -> Coefficients:
    """The committed result of the fit."""
    return Coefficients(**read_json(COEFFICIENTS)["coefficients"])


@dataclass(frozen=True)
class Setting:
    """A device with the coefficients that apply to it, as `op_ms` needs them."""

    device: Device
    tensor_share: float
    sustained: float  # 1 where power is no limit
    sustained_cuda: float
    overhead_us: float


def setting(device: Device, fitted: Coefficients, power_limited: bool | None = None) -> Setting:
    """The coefficients for `device`. `power_limited` overrides the rule that small boards are, larger ones are not."""
    limited = device.board_w <= SMALL_BOARD_W if power_limited is None else power_limited
    overhead = fitted.overhead_ampere_us if device.compute_capability >= 80 else fitted.overhead_turing_us
    return Setting(
        device,
        fitted.tensor_share,
        fitted.sustained_share if limited else 1.0,
        fitted.sustained_share_cuda if limited else 1.0,
        overhead,
    )


@lru_cache(maxsize=4096)  # the layers of an encoder are alike, and what-ifs change one of them
def op_ms(op: Op, on: Setting) -> float:
    """Milliseconds of one op on one device: an estimate."""
    return 1e3 * max(_compute_s(op, on), _memory_s(op, on.device)) + 1e-3 * on.overhead_us * op.launches


def bound(op: Op, on: Setting) -> str:
    """Name the largest part of an op's time: compute, memory or overhead."""
    parts = {
        "compute": _compute_s(op, on),
        "memory": _memory_s(op, on.device),
        "overhead": 1e-6 * on.overhead_us * op.launches,
    }
    return max(parts, key=lambda name: parts[name])


def total_ms(ops: Iterable[Op], on: Setting) -> float:
    """Milliseconds of all kernels, one after the other on one stream: an estimate."""
    return math.fsum(op_ms(op, on) for op in ops)


def _compute_s(op: Op, on: Setting) -> float:
    if op.kind not in (*GEMMS, *ATTENTIONS):
        return 0.0
    peak = on.device.peak(op.precision)
    on_cuda_cores = op.precision == "float32" and not on.device.has_tf32
    sustained = on.sustained_cuda if on_cuda_cores else on.sustained
    if op.kind in ATTENTIONS:  # one multiprocessor takes one head of one text
        waves = math.ceil(op.count / 2 / on.device.multiprocessors) * on.device.multiprocessors
        whole = op.operations / (op.count / 2) * waves
        return max(whole / (peak * ATTENTION_SHARE), op.operations / (peak * min(ATTENTION_SHARE, sustained)))
    return max(_tiled_s(op, on, peak), op.operations / (peak * sustained))


def _tiled_s(op: Op, on: Setting, peak: float) -> float:
    """Seconds at the boost clock with the best tile shape."""
    per_multiprocessor = peak * on.tensor_share / on.device.multiprocessors
    return min(
        math.ceil(math.ceil(op.m / rows) * math.ceil(op.n / columns) / on.device.multiprocessors)
        * (2 * rows * columns * op.k / (per_multiprocessor * tile_share(rows, columns)))
        for rows, columns in TILES
    )


def tile_share(rows: int, columns: int) -> float:
    """Share of the endless tile's rate that a tile of this size reaches."""
    edge = 2 * rows * columns / (rows + columns)
    return edge / (edge + FRAGMENT)


def _memory_s(op: Op, device: Device) -> float:
    held = min(op.activation_bytes, L2_SHARE * device.l2_mb * 1e6)
    streamed = op.weight_bytes + op.activation_bytes - held  # weights of a whole network never stay in the L2
    return (streamed + held / L2_SPEEDUP) / (device.bandwidth_gb_s * 1e9 * MEMORY_SHARE)
