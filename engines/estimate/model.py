"""The analytical model: how long one kernel takes on one device, and how long all of them take together.

    time    = overhead + max(compute, memory)
    compute = waves of tiles at the boost clock
    memory  = bytes the L2 cannot hold / DRAM bandwidth  +  bytes it holds / L2 bandwidth

**Waves.** A matrix product [m,k] x [k,n] is cut into tiles of rows x columns, one tile per multiprocessor at a time, so
its time is `ceil(tiles / multiprocessors)` times that of one tile: small products leave multiprocessors idle. A tile
reaches `tensor_share` of the peak, less the smaller it is, because operands are reused along its edges only:
`edge / (edge + FRAGMENT)` with the harmonic mean of its two edges. TensorRT times many tile shapes and keeps the best;
here that is the minimum over `TILES`.

**Power.** A board limited to the slot's 75 W cannot feed its tensor cores at the boost clock. `_power_s` is the time in
which it may spend a kernel's energy: operations at `sustained_share` of the peak, bytes at `1 / MEMORY_POWER` times the
bandwidth. A clock that followed every kernel would make each of them take at least that long; one that follows slowly
lets the products draw what the kernels between them leave, and only the sum counts. Neither is true of a governor that
reacts within milliseconds, so the estimate is the mean of both. Larger boards show no such limit in the published rows.

Every term grows with batch, sequence, features and element size, so the estimate never falls when one of them grows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from engines.estimate.devices import SMALL_BOARD_W, Device
from engines.estimate.workload import ATTENTIONS, Op
from qdq.base.artifacts import read_json

DATA = Path(__file__).resolve().parent / "data"
COEFFICIENTS = DATA / "coefficients.json"
VALIDATION = DATA / "validation.json"

# Structure, set by hand and not fitted: round figures, see docs/estimate.md for how much they matter.
TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (64, 32), (32, 64), (32, 32))
FRAGMENT = 16  # edge of one tensor-core operand fragment
MEMORY_SHARE = 0.75  # of the datasheet bandwidth that streaming kernels reach
L2_SPEEDUP = 3.0  # L2 bandwidth over DRAM bandwidth
ATTENTION_SHARE = 0.5  # of the peak, in attention: short products with a softmax between them
LIGHT_OVERHEAD = 0.25  # of the overhead, for a kernel that only moves memory: no operands to stage before it starts
MEMORY_POWER = 0.4  # of a small board's power that streaming at the full bandwidth takes


@dataclass(frozen=True)
class Coefficients:
    """Coefficients fitted on published rows (qdq.studies.estimate); shares are of the datasheet peak."""

    tensor_share: float  # reached by an endless tile at the boost clock
    sustained_share: float  # held by a small board's tensor cores under its power limit, when nothing else draws power
    sustained_share_cuda: float  # held by a small board's CUDA cores (FP32 before Ampere)
    overhead_turing_us: float  # fixed time of a matrix product, CUDA graph: launch, ramp, pipeline fill
    overhead_ampere_us: float  # the same from Ampere on, which copies to shared memory asynchronously


@lru_cache(maxsize=1)
def load_coefficients() -> Coefficients:
    """The committed result of the fit."""
    return Coefficients(**read_json(COEFFICIENTS)["coefficients"])


@dataclass(frozen=True)
class Setting:
    """A device with the coefficients that apply to it, as `op_ms` needs them."""

    device: Device
    limited: bool  # by power
    tensor_share: float
    sustained: float
    sustained_cuda: float
    overhead_us: float


def setting(device: Device, fitted: Coefficients, power_limited: bool | None = None) -> Setting:
    """The coefficients for `device`. `power_limited` overrides the rule that small boards are, larger ones are not."""
    limited = device.board_w <= SMALL_BOARD_W if power_limited is None else power_limited
    overhead = fitted.overhead_ampere_us if device.compute_capability >= 80 else fitted.overhead_turing_us
    sustained, on_cuda_cores = fitted.sustained_share, fitted.sustained_share_cuda
    return Setting(device, limited, fitted.tensor_share, sustained, on_cuda_cores, overhead)


@dataclass(frozen=True)
class _Cost:
    """Seconds of one kernel: what each part would take alone."""

    compute: float
    memory: float
    power: float  # 0 where power is no limit
    overhead: float

    def at(self, slowdown: float) -> float:
        """Seconds when the clock of the cores is `slowdown` times slower than the boost clock."""
        return max(self.compute * slowdown, self.memory) + self.overhead


@lru_cache(maxsize=65536)  # the layers of an encoder are alike, and what-ifs change one of them
def _cost(op: Op, on: Setting) -> _Cost:
    overhead = 1e-6 * on.overhead_us * (1 if op.multiplies else LIGHT_OVERHEAD)
    return _Cost(_compute_s(op, on), _memory_s(op, on.device), _power_s(op, on), overhead)


def op_ms(op: Op, on: Setting) -> float:
    """Milliseconds of one kernel by itself on one device: an estimate."""
    return total_ms([op], on)


def total_ms(ops: Sequence[Op], on: Setting) -> float:
    """Milliseconds of all kernels, one after the other on one stream: an estimate."""
    costs = [_cost(op, on) for op in ops]
    return 1e3 * (_following_s(costs) + _lasting_s(costs)) / 2


def kernels_ms(ops: Sequence[Op], on: Setting) -> list[float]:
    """Milliseconds of every kernel within the whole; they add up to `total_ms`."""
    costs = [_cost(op, on) for op in ops]
    slowdown = _slowdown(costs)
    return [1e3 * (_following_s([cost]) + cost.at(slowdown)) / 2 for cost in costs]


def _following_s(costs: Sequence[_Cost]) -> float:
    """Seconds when the clock follows every kernel: each of them keeps the power limit."""
    return math.fsum(max(cost.compute, cost.memory, cost.power) + cost.overhead for cost in costs)


def _lasting_s(costs: Sequence[_Cost]) -> float:
    """Seconds when one clock lasts for all kernels: together they keep the power limit."""
    return max(math.fsum(cost.at(1) for cost in costs), math.fsum(cost.power for cost in costs))


def _slowdown(costs: Sequence[_Cost]) -> float:
    """The slowdown with which all kernels together take `_lasting_s`, by bisection."""
    whole = _lasting_s(costs)
    if math.fsum(cost.at(1) for cost in costs) >= whole:
        return 1.0
    low, high = 1.0, 2.0
    while math.fsum(cost.at(high) for cost in costs) < whole:
        high *= 2
    for _ in range(60):  # halving the interval beyond what a double resolves
        middle = (low + high) / 2
        low, high = (middle, high) if math.fsum(cost.at(middle) for cost in costs) < whole else (low, middle)
    return low


def bound(op: Op, on: Setting) -> str:
    """Name the largest part of a kernel's time: compute (power included), memory or overhead."""
    cost = _cost(op, on)
    products = max(cost.compute, cost.power) if op.multiplies else 0.0
    parts = {"compute": products, "memory": cost.memory, "overhead": cost.overhead}
    return max(parts, key=lambda name: parts[name])


def _compute_s(op: Op, on: Setting) -> float:
    """Seconds at the boost clock."""
    if not op.multiplies:
        return 0.0
    peak = on.device.peak(op.precision)
    if op.kind in ATTENTIONS:  # one multiprocessor takes one head of one text
        waves = math.ceil(op.count / 2 / on.device.multiprocessors) * on.device.multiprocessors
        return op.operations / (op.count / 2) * waves / (peak * ATTENTION_SHARE)
    # A matrix product, with the best tile shape.
    per_multiprocessor = peak * on.tensor_share / on.device.multiprocessors
    return min(
        math.ceil(op.count * math.ceil(op.m / rows) * math.ceil(op.n / columns) / on.device.multiprocessors)
        * (2 * rows * columns * op.k / (per_multiprocessor * tile_share(rows, columns)))
        for rows, columns in TILES
    )


def _power_s(op: Op, on: Setting) -> float:
    """Seconds in which a power-limited board may spend the energy of a kernel."""
    if not on.limited:
        return 0.0
    on_cuda_cores = op.precision == "float32" and not on.device.has_tf32
    rate = on.device.peak(op.precision) * (on.sustained_cuda if on_cuda_cores else on.sustained)
    moved = op.weight_bytes + op.activation_bytes
    return op.operations / rate + MEMORY_POWER * moved / (on.device.bandwidth_gb_s * 1e9)


def tile_share(rows: int, columns: int) -> float:
    """Share of the endless tile's rate that a tile of this size reaches."""
    edge = 2 * rows * columns / (rows + columns)
    return edge / (edge + FRAGMENT)


def _memory_s(op: Op, device: Device) -> float:
    held = min(op.activation_bytes, device.l2_mb * 1e6 / op.sharing)  # the last of what the kernel before wrote
    streamed = op.weight_bytes + op.activation_bytes - held  # weights of a whole network never stay in the L2
    return (streamed + held / L2_SPEEDUP) / (device.bandwidth_gb_s * 1e9 * MEMORY_SHARE)
