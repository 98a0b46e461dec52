"""The points of a model in groups: by layer, by kind, by both."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Point attribute -> the kind its group is called by.
KINDS = (
    ("matmul_q_input_quantizer", "matmul q"),
    ("matmul_k_input_quantizer", "matmul k"),
    ("matmul_a_input_quantizer", "matmul a"),
    ("matmul_v_input_quantizer", "matmul v"),
    ("add_local_input_quantizer", "residual local"),
    ("add_residual_input_quantizer", "residual skip"),
    ("input_quantizer", "linear input"),
    ("weight_quantizer", "linear weight"),
)
_LAYER = re.compile(r"\.(\d+)\.")


def kind_of(point: str) -> str:
    """Readable kind of a point, by its attribute."""
    attribute = point.rpartition(".")[2]
    return next((kind for name, kind in KINDS if attribute == name), attribute)


def layer_of(point: str) -> int | None:
    """Index of the encoder layer a point is in; None outside the layers."""
    found = _LAYER.search(point)
    return int(found.group(1)) if found else None


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


def part_of(point: str) -> str:
    """Path of the owner inside its layer, such as ``attention.output.dense``."""
    owner = point.rpartition(".")[0]
    found = _LAYER.search(point)
    return owner[found.end() :] if found and found.end() <= len(owner) else owner
