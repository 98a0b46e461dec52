"""Units: the points that are quantized together or not at all, because half of them is worth nothing on the target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qdq.placing.sensitivity.groups import kind_of, layer_of, part_of


@dataclass(frozen=True)
class Unit:
    """Points that stand or fall together.

    Attributes:
        name: readable, unique in a model.
        kind: key of the cost tables.
        loses: what the target loses when this unit is floating point, for the reason in placement.json.
    """

    name: str
    points: tuple[str, ...]
    kind: str
    loses: str


# What a target does with half of a unit, and so what leaving it out loses; keys are `_family`'s.
LOSSES: Mapping[str, Mapping[str, str]] = {
    "tensorrt": {
        "linear": "its GEMM then runs in FP16",
        "attention": "TensorRT fuses attention in INT8 only with all four operands, so all four go and it runs in FP16",
        "residual local": "its GEMM then writes FP16 instead of INT8, and the add reads that",
        "residual skip": "the add then reads this operand in FP16",
    },
    "cpu": {
        "linear": "its multiplication then runs in floating point",
        "attention scores": "the first attention multiplication then runs in floating point",
        "attention context": "the second attention multiplication then runs in floating point",
        "residual local": "the add then reads this operand in floating point",
        "residual skip": "the add then reads this operand in floating point",
    },
}


def units(points: Iterable[str], target: str) -> tuple[Unit, ...]:
    """Every point in its unit, in model order.

    A linear's input and weight go together: with one of them in floating point the multiplication is. So do the
    operands of one attention multiplication on a CPU, and of both on TensorRT. Residual operands stand alone.
    """
    losses = LOSSES[decided_for(target)]
    members: dict[str, list[str]] = {}
    families: dict[str, str] = {}
    for point in points:
        family = _family(point, target)
        owner = point.rpartition(".")[0]
        name = f"{owner} ({family})"
        members.setdefault(name, []).append(point)
        families[name] = family
    return tuple(
        Unit(name, tuple(found), _cost_kind(found[0], families[name]), losses[families[name]])
        for name, found in members.items()
    )


def _family(point: str, target: str) -> str:
    kind = kind_of(point)
    if kind.startswith("linear"):
        return "linear"
    if kind.startswith("residual"):
        return kind
    if target == "tensorrt":
        return "attention"
    return "attention scores" if kind in ("matmul q", "matmul k") else "attention context"


def _cost_kind(point: str, family: str) -> str:
    """``linear intermediate.dense``, ``residual local attention.output``, ``attention``: the same in every layer."""
    if family.startswith("attention") or layer_of(point) is None:
        return family
    return f"{family} {part_of(point)}"


def decided_for(target: str) -> str:
    """What `--placement auto` depends on: both CPU engines get the same, so that they can share a work directory."""
    return "tensorrt" if target == "tensorrt" else "cpu"
