"""`python -m qdq.studies.placement_costs WORK`: the cost of leaving a unit in floating point, for `--placement auto`.

WORK is a work directory, for example of the bundled model, compiled with placement fused for TensorRT and qdqbert for a
CPU: ``qdq compile --target tensorrt --placement fused --out build/costs``. For TensorRT there may be a second one with
qdqbert, which has the residual operands that fused leaves float.

TensorRT: the graph without each unit of one middle layer is compiled. Kernels and megabytes are facts of that engine;
nothing is timed and no GPU is needed, so the latency they stand for carries the estimator's error.

CPU (``--target cpu``): one OpenVINO engine for every kind of unit, timed in one interleaved run with the engine of the
CPU's own placement: without the kind in every layer where that placement quantizes it, with it where it does not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import read_json, write_json
from qdq.errors import DeployError
from qdq.pipeline.run import CANONICAL
from qdq.placing.units import TABLE, layer_of, units
from qdq.studies.study import exit_code, parser

if TYPE_CHECKING:
    from engines.tensorrt_rtx import Compiled
    from export.passes import LowerOptions

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
    from qdq.text.workload import workload_of_shape

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


def tensorrt_costs(works: Sequence[Path], batch: int = BATCH, sequence: int = SEQUENCE) -> dict[str, Any]:
    """The part of the table for TensorRT, from the canonical graphs of `works`: kinds of an earlier one count.

    Of every cost kind, when one unit of it is left out in a middle layer: kernels and megabytes that are added to the
    compiled engine, and the latency these are estimated to take, as a share of one layer's; and what the layer itself
    has. Raises DeployError for a work directory without a graph, Unavailable without the compiler.
    """
    from engines.estimate.devices import find_device
    from qdq.placing.compiled import Setting, compiled_without

    sm = find_device(DEVICE).compute_capability
    found: dict[str, dict[str, float]] = {"shares": {}, "kernels": {}, "megabytes": {}}
    layer: dict[str, float] = {}
    for work in works:
        _require(work / CANONICAL, f"qdq compile --target tensorrt --placement fused --out {work}")
        points = [point["name"] for point in read_json(work / "placement.json")["points"] if point["placed"]]
        layers = sorted({index for point in points if (index := layer_of(point)) is not None})
        middle = layers[len(layers) // 2]  # stands for all: nothing of it borders on embedding or head
        inside = units([point for point in points if layer_of(point) == middle], "tensorrt")
        kinds = [unit for unit in inside if unit.kind not in found["shares"]]
        left_out = {0: (), **{number: unit.points for number, unit in enumerate(kinds, start=1)}}
        lowering = _lowering(work, sequence)
        engines = compiled_without(work / CANONICAL, left_out, Setting(sm, batch, sequence, lowering))
        whole, per_layer = engines[0], engines[0].per_layer()
        layer = layer or {"kernels": per_layer[middle][0], "megabytes": round(per_layer[middle][1], 2)}
        base = milliseconds(whole)
        for number, unit in enumerate(kinds, start=1):
            engine = engines[number]
            found["kernels"][unit.kind] = len(engine.kernels) - len(whole.kernels)
            found["megabytes"][unit.kind] = round(engine.megabytes - whole.megabytes, 2) + 0.0  # no -0.0
            found["shares"][unit.kind] = round((milliseconds(engine) - base) * len(layers) / base, 4) + 0.0
    about = (
        f"compiled by TensorRT for RTX {whole.version} for SM {sm / 10} at batch {batch} x sequence {sequence}; shares "
        f"of latency are estimated from these kernels and bytes for {DEVICE}"
    )
    return {"about": about, "layer": layer, **found}


def milliseconds(engine: Compiled) -> float:
    """The estimate for the kernels of a compiled engine on DEVICE, as `qdq estimate` makes it."""
    from engines.estimate.compiled import kernel_ops
    from engines.estimate.devices import find_device
    from engines.estimate.model import load_coefficients, setting, total_ms

    return total_ms(kernel_ops(engine.kernels), setting(find_device(DEVICE), load_coefficients()))


def _lowering(work: Path, sequence: int) -> LowerOptions:
    """Options of the default lowering of a canonical graph: its ranges and products measured on the bundled text."""
    from export.passes import LowerOptions
    from export.products import measure_products
    from export.ranges import measure_ranges
    from qdq.calibrate.checkpoint import load_checkpoint
    from qdq.text.data import bundled, read_records
    from qdq.text.workload import workload_of_shape

    loaded, *_ = load_checkpoint(work / "checkpoint")
    feeds = workload_of_shape(loaded.tokenizer, read_records(bundled(), 16)[0], loaded.inputs, (8, sequence), 2)
    graph = work / CANONICAL
    return LowerOptions(ranges=measure_ranges(graph, feeds), products=measure_products(graph, feeds))


def _require(file: Path, command: str) -> None:
    if not file.is_file():
        raise DeployError(f"{file} does not exist; run '{command}' first")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one part of the table; the other stays."""
    command = parser("placement_costs", __doc__)
    command.add_argument("work", type=Path, metavar="WORK", nargs="+")
    command.add_argument("--target", choices=("tensorrt", "cpu"), default="tensorrt")
    typed = command.parse_args(arguments)
    if typed.target == "cpu":
        from engines.bench.machine import machine

        shape = f"batch {BATCH} x sequence {SEQUENCE}"
        part = {
            "about": f"measured with OpenVINO at {shape} on {machine()['cpu']}",
            "shares": cpu_shares(typed.work[0]),
        }
    else:
        part = tensorrt_costs(typed.work)
    write_json(TABLE, {**(read_json(TABLE) if TABLE.is_file() else {}), typed.target: part})


if __name__ == "__main__":
    sys.exit(exit_code(main))
