"""`python -m qdq.studies.placement_costs WORK`: the cost of leaving a unit in floating point, for `--placement auto`.

WORK is a work directory compiled with placement qdqbert, for example of the bundled model:
``qdq compile --target tensorrt --placement qdqbert --out build/costs``.

TensorRT: every unit of one middle layer is taken away from the lowered graph; the estimator says what the fusions lost
by that cost. Nothing is timed, no GPU is needed; the figures carry the estimator's error.

CPU (``--target cpu``): one OpenVINO engine for every kind of unit, timed in one interleaved run with the engine of the
CPU's own placement: without the kind in every layer where that placement quantizes it, with it where it does not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdq.base.artifacts import read_json, write_json
from qdq.errors import DeployError
from qdq.pipeline.run import CANONICAL
from qdq.placing.units import TABLE, layer_of, units
from qdq.studies.study import exit_code, parser

DEVICE, BATCH, SEQUENCE = "t4", 40, 128
WHOLE = "cpu placement"  # the engine that every other one is compared with


def cpu_shares(work: Path, batch: int = BATCH, sequence: int = SEQUENCE, rounds: int = 20) -> dict[str, float]:
    """Cost kind -> latency it adds when left out, as a share of one layer's; below zero where INT8 is the slower.

    Raises DeployError for a work directory without a graph.
    """
    from engines.cores import available_cores
    from qdq.calibrate.checkpoint import load_checkpoint
    from qdq.inject import decided
    from qdq.inject.spec import named_spec
    from qdq.placing import WIDEST
    from qdq.placing.latency import Timing, added_latency
    from qdq.text.data import bundled, read_records
    from qdq.text.encode import workload_of_shape

    # Texts to time with, the encoder's points by kind of unit, and those of the CPU's own placement.
    _require(work / CANONICAL, f"qdq compile --placement qdqbert --out {work}")
    loaded, _, placement = load_checkpoint(work / "checkpoint")
    records = read_records(bundled(), batch)[0]
    feeds = workload_of_shape(loaded.tokenizer, records, loaded.inputs, (batch, sequence), 2)
    inside = [point.name for point in placement.placed if layer_of(point.name) is not None]
    kinds: dict[str, set[str]] = {}
    for unit in units(inside, "cpu"):
        kinds.setdefault(unit.kind, set()).update(unit.points)
    own = {point.name for point in decided(loaded.model, named_spec(WIDEST["cpu"])).placed} & set(inside)
    # A kind that the CPU's own placement quantizes is left out, any other is added.
    left_out = {WHOLE: set(inside) - own} | {kind: set(inside) - (own ^ points) for kind, points in kinds.items()}
    slower = added_latency(work / CANONICAL, left_out, Timing("openvino", available_cores(), feeds, rounds))
    return {kind: round(slower[kind] if points <= own else -slower[kind], 4) for kind, points in kinds.items()}


def tensorrt_shares(work: Path) -> dict[str, float]:
    """Cost kind -> latency a unit adds when left out, as a share of one layer's. Raises DeployError, ConfigError."""
    import onnx

    from engines.estimate import estimate, find_device
    from export.lint import fusion_map
    from export.lint.removal import layers_without

    graph = work / "tensorrt" / "model.onnx"
    _require(graph, "qdq compile --target tensorrt --placement qdqbert")
    model = onnx.load(graph, load_external_data=False)
    points = [point["name"] for point in read_json(work / "placement.json")["points"] if point["placed"]]
    layers = sorted({index for point in points if (index := layer_of(point)) is not None})
    middle = layers[len(layers) // 2]
    sm = find_device(DEVICE).compute_capability

    def milliseconds(network: Any) -> float:
        return float(estimate(network, DEVICE, BATCH, SEQUENCE)["estimate_ms"]["lowered"])

    # A middle layer stands for all: nothing of it borders on embedding or head.
    whole = milliseconds(fusion_map(model, sm, SEQUENCE))
    shares = {}
    for unit in units([point for point in points if layer_of(point) == middle], "tensorrt"):
        added = milliseconds(layers_without(model, unit.points, sm, SEQUENCE)) - whole
        shares[unit.kind] = round(added * len(layers) / whole, 4)
    return shares


def _require(file: Path, command: str) -> None:
    if not file.is_file():
        raise DeployError(f"{file} does not exist; run '{command}' first")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one part of the table; the other stays."""
    command = parser("placement_costs", __doc__)
    command.add_argument("work", type=Path, metavar="WORK")
    command.add_argument("--target", choices=("tensorrt", "cpu"), default="tensorrt")
    typed = command.parse_args(arguments)
    shape = f"batch {BATCH} x sequence {SEQUENCE}"
    if typed.target == "cpu":
        from engines.bench.machine import machine

        part = {"about": f"measured with OpenVINO at {shape} on {machine()['cpu']}", "shares": cpu_shares(typed.work)}
    else:
        part = {"about": f"estimated for {DEVICE}, {shape}", "shares": tensorrt_shares(typed.work)}
    write_json(TABLE, {**(read_json(TABLE) if TABLE.is_file() else {}), typed.target: part})


if __name__ == "__main__":
    sys.exit(exit_code(main))
