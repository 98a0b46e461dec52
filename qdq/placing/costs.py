"""What leaving a unit in floating point costs on a target: the table of
`python -m qdq.studies.placement_costs`.

Shares are of one layer's latency with everything quantized, per unit of one layer, for the shapes the table names. On a
CPU they are measured, engine against engine; for TensorRT they are the estimator's, from the fusion map with the unit
taken away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdq.placing.units import decided_for

TABLE = Path(__file__).resolve().parent / "data" / "costs.json"
SMALLEST = 0.002  # of a layer: below this a difference cannot be measured, and no unit is worth nothing


def load_costs(target: str) -> dict[str, float]:
    """Cost kind -> share of a layer's latency; empty for a target without a table."""
    content: Mapping[str, Any] = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
    return {kind: float(share) for kind, share in content.get(decided_for(target), {}).get("shares", {}).items()}


def cost_of(kind: str, costs: Mapping[str, float]) -> float:
    """The table's share for `kind`, else the mean of its family's (another family names its parts otherwise)."""
    if kind in costs:
        return max(costs[kind], SMALLEST)
    family = [share for name, share in costs.items() if name.split(" ")[:1] == kind.split(" ")[:1]]
    return max(sum(family) / len(family), SMALLEST) if family else SMALLEST
