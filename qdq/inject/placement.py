"""Points and their placement: every candidate ends as placed or declined, with the reason."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qdq.inject.spec import QuantSpec

Kind = Literal["linear_input", "linear_weight", "matmul", "residual", "embedding"]
Zone = Literal["encoder", "embeddings", "pooler", "head"]


@dataclass(frozen=True)
class Candidate:
    """A place in the model where a quantizer could stand.

    `module` is the dotted path of the owning module, `attribute` the quantizer's attribute on it, `operand` the
    spec's word for a matmul or residual operand ("" for linears).
    """

    module: str
    attribute: str
    kind: Kind
    zone: Zone
    operand: str = ""

    @property
    def name(self) -> str:
        """Readable point name: the module path and the attribute without its leading underscore."""
        return f"{self.module}.{self.attribute.lstrip('_')}"


@dataclass(frozen=True)
class Point:
    """A decided candidate, one row of placement.json."""

    name: str
    kind: Kind
    placed: bool
    reason: str


@dataclass(frozen=True)
class Placement:
    """Every candidate point of a model with its decision, in model order."""

    points: tuple[Point, ...]

    @property
    def placed(self) -> tuple[Point, ...]:
        """The points that carry a quantizer."""
        return tuple(point for point in self.points if point.placed)

    def counts(self) -> dict[str, tuple[int, int]]:
        """(placed, candidates) per kind."""
        total = Counter(point.kind for point in self.points)
        placed = Counter(point.kind for point in self.placed)
        return {kind: (placed[kind], total[kind]) for kind in sorted(total)}

    def as_json(self) -> dict[str, Any]:
        """The content of placement.json."""
        return {"points": [asdict(point) for point in self.points]}


ZONE_REASONS = {
    "pooler": "the pooler stays float by default, as in QDQBERT; enable_layers can place it",
    "head": "the task head stays float by default, as in QDQBERT; enable_layers can place it",
    "embeddings": "linears of the embedding block stay float unless the spec says embeddings: true",
}


# Why a placement leaves an operand float: what INT8 would cost or bring there, measured in docs/performance.md and
# docs/tensorrt.md. The placement that quantizes it is named, so that the reason is also the way out.
OPERAND_REASONS = {
    "q": "its product with k would be INT8 only if both were, as with --placement linear+qk",
    "k": "its product with q would be INT8 only if both were, as with --placement linear+qk",
    "a": "in steps of 1/127 small softmax probabilities become 0, on a CPU twice the error for little speed; "
    "--placement ft1 quantizes it",
    "v": "its product with the softmax would be INT8 only if both operands were, as with --placement ft1",
    "local": "the sum is computed in float, so INT8 would only round once more here; --placement qdqbert quantizes it",
    "residual": "the sum is computed in float, and INT8 pays where TensorRT's linears read the same tensor, as with "
    "--placement fused",
}


def decide(candidate: Candidate, spec: QuantSpec) -> Point:
    """Place or decline one candidate. An explicit enable wins over everything, then the disables, then the kinds."""
    placed, reason = _decision(candidate, spec)
    return Point(candidate.name, candidate.kind, placed, reason)


def _decision(candidate: Candidate, spec: QuantSpec) -> tuple[bool, str]:
    name = candidate.name
    if spec.enable_layers and re.search(spec.enable_layers, name):
        return True, f"enable_layers '{spec.enable_layers}' matches"
    if spec.disable_layers and re.search(spec.disable_layers, name):
        return False, f"disable_layers '{spec.disable_layers}' matches"
    for declined, reason in spec.declined:
        if declined == name:
            return False, reason
    for keyword in spec.disable_keywords:
        if keyword in name:
            return False, f"disable_keywords has '{keyword}'"
    if candidate.kind == "embedding":
        stays = "embedding tables stay float unless the spec says embedding_tables: true"
        return (True, "embedding_tables: true") if spec.embedding_tables else (False, stays)
    if candidate.zone in ZONE_REASONS and not (candidate.zone == "embeddings" and spec.embeddings):
        return False, ZONE_REASONS[candidate.zone]
    return _by_kind(candidate, spec)


def _by_kind(candidate: Candidate, spec: QuantSpec) -> tuple[bool, str]:
    if spec.dynamic and candidate.kind == "linear_input":
        return False, f"{spec.placement} quantizes it at run time"
    wanted = {"matmul": spec.matmul, "residual": spec.residual}.get(candidate.kind)
    if wanted is None:
        what = "linear inputs and weights"
        return (True, f"{spec.placement}: {what}") if spec.linear else (False, f"{spec.placement} leaves {what} float")
    what = f"{candidate.kind} operand {candidate.operand}"
    if candidate.operand in wanted:
        return True, f"{spec.placement}: {what}"
    return False, f"{spec.placement} leaves {what} float: {OPERAND_REASONS[candidate.operand]}"
