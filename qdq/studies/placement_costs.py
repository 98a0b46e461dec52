"""`python -m qdq.studies.placement_costs WORK`: what leaving a unit in floating point costs, for `--placement auto`.

WORK is a work directory compiled with placement qdqbert, for example of the bundled model:
``qdq compile --target tensorrt --placement qdqbert --out build/costs``.

TensorRT: every unit of one middle layer is taken away from the lowered graph; the estimator says what the fusions lost
by that cost. Nothing is timed, no GPU is needed; the figures carry the estimator's error.

CPU (``--target cpu``): one OpenVINO engine for every kind of unit, timed in one interleaved run with the engine of the
CPU's own placement: without the kind in every layer where that placement quantizes it, with it where it does not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdq.base.artifacts import read_json, write_json
from qdq.errors import DeployError
from qdq.pipeline.run import CANONICAL
from qdq.placing.costs import TABLE
from qdq.placing.sensitivity.groups import layer_of
from qdq.placing.units import units

DEVICE, BATCH, SEQUENCE = "t4", 40, 128
WHOLE = "cpu placement"  # the engine that every other one is compared with


def cpu_shares(work: Path, batch: int = BATCH, sequence: int = SEQUENCE, rounds: int = 20) -> dict[str, float]:
    """Cost kind -> latency it adds when left out, as a share of one layer's; below zero where INT8 is the slower.

    Raises DeployError for a work directory without a graph.
    """
    import onnx

    from engines.bench import BenchSettings, Contestant, bench
    from qdq.base.versions import versions
    from qdq.calibrate.checkpoint import load_checkpoint
    from qdq.inject import decided
    from qdq.inject.spec import named_spec
    from qdq.pipeline.options import available_cores
    from qdq.placing import WIDEST
    from qdq.placing.latency import Timing, engine_without
    from qdq.text.data import bundled, read_records
    from qdq.text.encode import workload_of_shape

    if not (work / CANONICAL).is_file():
        raise DeployError(
            f"{work / CANONICAL} does not exist; run 'qdq compile --placement qdqbert --out {work}' first"
        )
    canonical = onnx.load(work / CANONICAL)
    loaded, _, placement = load_checkpoint(work / "checkpoint")
    records = read_records(bundled(), batch)[0]
    feeds = workload_of_shape(loaded.tokenizer, records, loaded.inputs, (batch, sequence), 2)
    inside = [point.name for point in placement.placed if layer_of(point.name) is not None]
    kinds: dict[str, set[str]] = {}
    for unit in units(inside, "openvino"):
        kinds.setdefault(unit.kind, set()).update(unit.points)
    own = {point.name for point in decided(loaded.model, named_spec(WIDEST["openvino"])).placed} & set(inside)
    timing = Timing("openvino", available_cores(), feeds)
    with tempfile.TemporaryDirectory() as folder:
        whole = engine_without(canonical, set(inside) - own, Path(folder) / "whole", timing)
        runners = [Contestant(WHOLE, "openvino", whole)]
        for number, (kind, points) in enumerate(kinds.items()):
            left_out = set(inside) - (own ^ points)
            engine = engine_without(canonical, left_out, Path(folder) / str(number), timing)
            runners.append(Contestant(kind, "openvino", engine))
        settings = BenchSettings(batch, sequence, None, samples=rounds, threads=available_cores(), bases=(WHOLE,))
        report = bench(runners, feeds, settings, versions())
    slower = {kind: 1 / report["contestants"][kind]["speedup"][WHOLE] - 1 for kind in kinds}
    return {kind: round(slower[kind] if points <= own else -slower[kind], 4) for kind, points in kinds.items()}


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
    """Write one part of the table; the other stays."""
    parser = argparse.ArgumentParser(
        prog="python -m qdq.studies.placement_costs", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--target", choices=("tensorrt", "cpu"), default="tensorrt")
    typed = parser.parse_args(arguments)
    content = read_json(TABLE) if TABLE.is_file() else {}
    shape = f"batch {BATCH} x sequence {SEQUENCE}"
    if typed.target == "cpu":
        from engines.bench.machine import machine

        part = {"about": f"measured with OpenVINO at {shape} on {machine()['cpu']}", "shares": cpu_shares(typed.work)}
    else:
        part = {"about": f"estimated for {DEVICE}, {shape}", "shares": tensorrt_shares(typed.work)}
    write_json(TABLE, {**content, typed.target: part})
    return 0


if __name__ == "__main__":
    sys.exit(main())
