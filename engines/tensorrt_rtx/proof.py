"""A compiled graph as a report: what of it is INT8, its scales, its kernels and bytes beside the FP16 graph's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.tensorrt.settings import TensorRTSettings
from engines.tensorrt_rtx.build import profile, read_back
from engines.tensorrt_rtx.compiler import Compiler
from engines.tensorrt_rtx.coverage import INT8, coverage
from engines.tensorrt_rtx.kernels import Compiled
from engines.types import MatmulNames

NOTE = "compiled, not run; datacenter TensorRT chooses its own kernels"


@dataclass(frozen=True)
class Pair:
    """A lowered graph and, in one float type, the same model unquantized."""

    lowered: Path
    floating: Path
    float_type: str  # fp16 or bf16


def prove(
    pair: Pair, names: MatmulNames, settings: TensorRTSettings, capability: int, served: Compiled | None = None
) -> dict[str, Any]:
    """Compile both graphs for one compute capability; JSON-ready.

    `names` are the multiplications of the lowered one. INT8 and scales are those of the engine with the profile of
    `settings` (`served` when it was compiled already), because its largest shape decides what fuses. Kernels and
    megabytes (inputs, constants and outputs of all kernels) are counted at its tuned shape, where both graphs have
    sizes. Raises Unavailable without the compiler, BuildError when it refuses a graph.
    """
    tuned = profile(settings).tuned()
    with Compiler() as compiler:
        served = served or compiler.compile(pair.lowered, (capability,), profile(settings))
        int8 = compiler.compile(pair.lowered, (capability,), tuned)
        plain = compiler.compile(pair.floating, (capability,), tuned)
    found, linears = coverage(served, pair.lowered), read_back(served, pair.lowered, names)
    floats = {item.name: item.reason for item in linears.not_int8 if item.name in names.linears}
    floats |= {name: reason for name, reason in found.attentions.items() if reason != INT8}
    return {
        "by": f"TensorRT for RTX {served.version}",
        "note": NOTE,
        "compute_capability": capability,
        "profile": {axis: list(sizes) for axis, sizes in settings.ranges().items()},
        "shape": [settings.batch_opt, settings.sequence_opt],
        **({"packed": settings.packing.summary()} if settings.packing else {}),
        "linears": list(linears.encoder_linear),
        "attentions": list(found.int8_attentions),
        "fp32_scales": list(found.fp32_scales),  # of products: linears that are computed together are one
        "not_int8": [{"name": name, "reason": reason} for name, reason in floats.items()],
        "int8": inventory(int8),
        "float": {"type": pair.float_type, **inventory(plain)},
    }


def inventory(compiled: Compiled) -> dict[str, Any]:
    """Kernels and megabytes of an engine of one shape, all of it and layer by layer."""
    layers = [counts for layer, counts in compiled.per_layer().items() if layer is not None]
    return {
        "kernels": len(compiled.kernels),
        "megabytes": round(compiled.megabytes, 2),
        "layers": [{"kernels": kernels, "megabytes": round(size, 2)} for kernels, size in layers],
    }


def proof_text(report: Mapping[str, Any]) -> str:
    """The report for the screen, without the list of what is not INT8."""
    (linear, linears), (attention, attentions) = report["linears"], report["attentions"]
    batch, sequence = report["shape"]
    lines = [
        f"{report['by']} for compute capability {report['compute_capability'] / 10}:",
        f"  {linear} of {linears} encoder linears and {attention} of {attentions} attentions are INT8",
        *_scales(*report["fp32_scales"]),
        *_beside(report["int8"], report["float"]),
        f"  counted at {batch} x {sequence}{_packed(report)}: inputs, constants and outputs of all kernels",
        f"  {report['note']}",
    ]
    return "\n".join(lines) + "\n"


def _packed(report: Mapping[str, Any]) -> str:
    """The fill that INT8 is counted at where its batch is not padded; the float graph always is."""
    packed = report.get("packed")
    if packed is None:
        return ""
    fill = f"{packed['rows']} rows" if packed["form"] == "rows" else f"{packed['tokens']} gathered tokens"
    return f", INT8 at {fill}"


def _scales(exact: int, all_int8: int) -> Iterator[str]:
    if exact == all_int8:
        yield "  every INT8 product with weights has its scale as an FP32 number"
        return
    yield f"  {exact} of {all_int8} INT8 products with weights have an FP32 scale;"
    yield "    the others store raw sums as 16-bit floats, which may overflow"


def _beside(int8: Mapping[str, Any], plain: Mapping[str, Any]) -> Iterator[str]:
    """A middle layer and the whole model: the INT8 graph's kernels and bytes, then the unquantized one's."""
    parts = [("whole model", int8, plain)]
    layers = len(int8["layers"])
    if layers and layers == len(plain["layers"]):
        middle = (layers - 1) // 2
        parts.insert(0, (f"layer {middle + 1} of {layers}", int8["layers"][middle], plain["layers"][middle]))
    for name, one, other in parts:
        yield (
            f"  {name}: {one['kernels']} kernels and {one['megabytes']:.1f} MB, "
            f"{plain['type'].upper()} {other['kernels']} and {other['megabytes']:.1f} MB"
        )
