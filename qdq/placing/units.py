"""Points by name: their kinds, layers and groups, and the units that a target computes in INT8 only together.

`python -m qdq.studies.placement_costs` writes the costs: what leaving out one unit of one layer adds to the latency, as
a share of that layer's with everything quantized. On a CPU they are measured, engine against engine. For TensorRT the
graph without the unit is compiled; what that adds in kernels and megabytes is there, too, and the latency is estimated
from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qdq.base.artifacts import read_json

TABLE = Path(__file__).resolve().parent / "data" / "costs.json"
SMALLEST = 0.002  # of a layer: smaller differences cannot be measured; above zero, because gains are divided by costs
# Point attribute -> the kind its group is called by.
KINDS = {
    "matmul_q_input_quantizer": "matmul q",
    "matmul_k_input_quantizer": "matmul k",
    "matmul_a_input_quantizer": "matmul a",
    "matmul_v_input_quantizer": "matmul v",
    "add_local_input_quantizer": "residual local",
    "add_residual_input_quantizer": "residual skip",
    "input_quantizer": "linear input",
    "weight_quantizer": "linear weight",
}
_LAYER = re.compile(r"\.(\d+)\.")


def kind_of(point: str) -> str:
    """Readable kind of a point, by its attribute."""
    attribute = point.rpartition(".")[2]
    return KINDS.get(attribute, attribute)


def layer_of(point: str) -> int | None:
    """Index of the encoder layer a point is in; None outside the layers."""
    found = _LAYER.search(point)
    return int(found.group(1)) if found else None


def part_of(point: str) -> str:
    """Path of the owner inside its layer, such as ``attention.output.dense``."""
    owner = point.rpartition(".")[0]
    found = _LAYER.search(point)
    return owner[found.end() :] if found and found.end() <= len(owner) else owner


def groups(points: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Name -> points: every layer, every kind of a part of the block, each with at least two points."""
    found: dict[str, list[str]] = {}
    for point in points:
        layer = layer_of(point)
        if layer is not None:
            found.setdefault(f"layer {layer}", []).append(point)
        found.setdefault(kind_of(point), []).append(point)
        found.setdefault(f"{part_of(point)} {kind_of(point)}", []).append(point)
    unique: dict[tuple[str, ...], str] = {}
    for name, members in found.items():
        if len(members) > 1:
            unique.setdefault(tuple(members), name)
    return {name: members for members, name in unique.items()}


@dataclass(frozen=True)
class Unit:
    """Points that are quantized together or not at all."""

    name: str  # unique in a model
    points: tuple[str, ...]
    kind: str  # key of the cost tables
    loses: str  # what the target loses when this unit is floating point, for the reason in placement.json
    cost: float  # latency added when this unit is floating point, as a share of one layer's
    kernels: float = 0.0  # added to the compiled engine, where that is known
    megabytes: float = 0.0  # that its kernels read and write in addition


# Consequence of leaving a unit out, by kind of target and `_family`.
LOSSES: Mapping[str, Mapping[str, str]] = {
    "tensorrt": {
        "linear": "its GEMM then runs in FP16",
        "attention": "TensorRT fuses attention in INT8 only with all four operands, so all four go and it runs in FP16",
        "residual local": "its GEMM then writes FP16 instead of INT8, and the add reads that",
        "residual skip": "the LayerNorm in front then writes this tensor in FP16 beside the INT8 that linears read",
    },
    "cpu": {
        "linear": "its multiplication then runs in floating point",
        "attention scores": "the first attention multiplication then runs in floating point",
        "attention context": "the second attention multiplication then runs in floating point",
        "residual local": "the add then reads this operand in floating point",
        "residual skip": "the add then reads this operand in floating point",
    },
}


def source_of_costs(target_kind: str) -> str:
    """Sentence on how the costs of units were found."""
    return str(read_json(TABLE).get(target_kind, {}).get("about", ""))


def units(points: Iterable[str], target_kind: str) -> tuple[Unit, ...]:
    """Group points into units, in model order. `target_kind` is a key of `LOSSES`.

    A linear's input and weight belong together: with one of them in floating point the multiplication is. So do the
    operands of one attention multiplication on a CPU, and of both on TensorRT. Residual operands stand alone.
    """
    losses = LOSSES[target_kind]
    table = read_json(TABLE).get(target_kind, {})
    shares, kernels, megabytes = (table.get(name, {}) for name in ("shares", "kernels", "megabytes"))
    members: dict[tuple[str, str], list[str]] = {}
    for point in points:
        members.setdefault((point.rpartition(".")[0], _family(point, losses)), []).append(point)
    found = []
    for (owner, family), inside in members.items():
        alike = family.startswith("attention") or layer_of(inside[0]) is None
        kind = family if alike else f"{family} {part_of(inside[0])}"  # the same in every layer
        cost = max(cost_of(kind, shares), SMALLEST)
        added = cost_of(kind, kernels), cost_of(kind, megabytes)
        found.append(Unit(f"{owner} ({family})", tuple(inside), kind, losses[family], cost, *added))
    return tuple(found)


def _family(point: str, losses: Mapping[str, str]) -> str:
    kind = kind_of(point)
    if not kind.startswith("matmul"):
        return "linear" if kind.startswith("linear") else kind
    if "attention" in losses:
        return "attention"
    return "attention scores" if kind in ("matmul q", "matmul k") else "attention context"


def cost_of(kind: str, costs: Mapping[str, float]) -> float:
    """Cost of a kind, else the mean of its family's: other model families name their parts otherwise. 0 for none."""
    if kind in costs:
        return costs[kind]
    family = kind.rpartition(" ")[0] or kind  # "residual skip output" is of the family "residual skip"
    found = [cost for name, cost in costs.items() if (name.rpartition(" ")[0] or name) == family]
    return sum(found) / len(found) if found else 0.0
