"""`python -m qdq.placement_costs WORK`: the cost table of `--placement auto` for TensorRT, from the fusion map.

WORK is a work directory compiled for tensorrt with placement qdqbert, for example of the bundled model:
``qdq compile --target tensorrt --placement qdqbert --out build/costs``. Every unit of one middle layer is taken away
from its lowered graph; the estimator says what the fusions lost by that cost. Nothing is timed, no GPU is needed; the
figures carry the estimator's error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdq.artifacts import read_json, write_json
from qdq.errors import DeployError
from qdq.placing.costs import TABLE
from qdq.placing.units import units
from qdq.sensitivity.groups import layer_of

DEVICE, BATCH, SEQUENCE = "t4", 40, 128


def tensorrt_shares(work: Path) -> dict[str, float]:
    """Cost kind -> latency a unit adds when left out, as a share of one layer's. Raises DeployError, ConfigError."""
    import onnx

    from engines.estimate import estimate, find_device
    from export.lint import fusion_map
    from export.lint.removal import layers_without

    graph = work / "tensorrt" / "model.onnx"
    if not graph.is_file():
        raise DeployError(f"{graph} does not exist; run 'qdq compile --target tensorrt --placement qdqbert' first")
    model = onnx.load(graph, load_external_data=False)
    points = [point["name"] for point in read_json(work / "placement.json")["points"] if point["placed"]]
    layers = sorted({index for point in points if (index := layer_of(point)) is not None})
    middle = layers[len(layers) // 2]
    sm = find_device(DEVICE).compute_capability

    def milliseconds(network: Any) -> float:
        return float(estimate(network, DEVICE, BATCH, SEQUENCE).estimate_ms["lowered"])

    whole = milliseconds(fusion_map(model, sm, SEQUENCE))
    inside = [point for point in points if layer_of(point) == middle]
    shares = {}
    for unit in units(inside, "tensorrt"):
        added = milliseconds(layers_without(model, unit.points, sm, SEQUENCE)) - whole
        shares[unit.kind] = round(added * len(layers) / whole, 4)
    return shares


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the TensorRT part of the table; the rest stays."""
    parser = argparse.ArgumentParser(prog="python -m qdq.placement_costs", description=__doc__, allow_abbrev=False)
    parser.add_argument("work", type=Path, metavar="WORK")
    work = parser.parse_args(arguments).work
    content = read_json(TABLE) if TABLE.is_file() else {}
    about = f"estimated for {DEVICE}, batch {BATCH} x sequence {SEQUENCE}, by qdq.placement_costs"
    write_json(TABLE, {**content, "tensorrt": {"about": about, "shares": tensorrt_shares(work)}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
