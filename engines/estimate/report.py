"""An estimate for one network on one device: totals, every layer, and what each quantizer saves.

Every number is labelled an estimate, and comes with the error the model has on published rows of that device, or with
the statement that there is none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from engines.estimate.compiled import KernelList
from engines.estimate.devices import Device, find_device
from engines.estimate.kernels import graph_ops
from engines.estimate.model import VALIDATION, Setting, bound, kernels_ms, load_coefficients, setting, total_ms
from engines.estimate.workload import ATTENTIONS, GEMMS, Layer, LayerRecord, Op, in_precision, records
from qdq.base.artifacts import read_json

PUBLISHED_SEQUENCE, PUBLISHED_BATCH, PUBLISHED_WIDTHS = 128, 128, (768, 1024)
COMPILED, PREDICTED = "compiled", "predicted"  # where kernels come from
VARIANTS = ("lowered", "float16", "float32")  # the graph as it is, and the same network in one float precision
DIGITS = 6  # decimals of a millisecond kept: picoseconds are noise


def estimate(
    layers: Sequence[Layer], device: str, batch: int, sequence: int, kernels: KernelList | None = None
) -> dict[str, Any]:
    """Estimate the latency of the network `layers` describes, for `batch` texts of `sequence` tokens on `device`.

    `kernels` are those the compiler builds of the same graph; without any, they are predicted from `layers`, as are
    always the float variants and the costs of a quantizer. Returns a JSON object in which every latency key says
    `estimate`. ``estimate_ms`` has the keys of VARIANTS; ``layers``, a row for every kernel, add up to its ``lowered``;
    ``kernels`` says where they come from; ``quantizers`` what losing those of one layer costs, all others kept;
    ``validation`` has the errors on published latencies never fitted. Raises ConfigError for an unknown device, kind or
    precision, an empty network, or a batch or sequence below 1.
    """
    found, network = find_device(device), records(layers)
    on = setting(found, load_coefficients())
    predicted = graph_ops(network, batch, sequence)
    kernels = kernels or KernelList((), "the compiler was not asked")
    ops, source = (kernels.ops, COMPILED) if kernels.ops else (predicted, PREDICTED)
    # The graph as it is, and the same network without INT8.
    times = [round(ms, DIGITS) for ms in kernels_ms(ops, on)]
    totals = {"lowered": round(math.fsum(times), DIGITS)}
    for precision in VARIANTS[1:]:
        plain = [in_precision(layer, precision) for layer in network]
        totals[precision] = _rounded_ms(graph_ops(plain, batch, sequence), on)
    return {
        "estimate": True,
        "device": asdict(found),
        "batch": batch,
        "sequence": sequence,
        "estimate_ms": totals,
        "estimate_sequences_per_s": {name: 1e3 * batch / ms for name, ms in totals.items()},
        "estimate_speedup": {name: totals[name] / totals["lowered"] for name in VARIANTS[1:]},
        "kernels": {
            "from": source,
            "about": kernels.about,
            "count": len(ops),
            "megabytes": round(sum(op.weight_bytes + op.activation_bytes for op in ops) / 1e6, 2),
            "predicted_estimate_ms": _rounded_ms(predicted, on),
        },
        "layers": [_layer(op, ms, on) for op, ms in zip(ops, times, strict=True)],
        "quantizers": _quantizers(network, batch, sequence, on),
        "validation": _validation(found, ops, source, _extrapolated(found, network, batch, sequence)),
    }


def _layer(op: Op, ms: float, on: Setting) -> dict[str, Any]:
    """One kernel and what limits it: compute, memory or overhead."""
    return {"name": op.name, "kind": op.kind, "precision": op.precision, "estimate_ms": ms, "bound": bound(op, on)}


def _quantizers(network: tuple[LayerRecord, ...], batch: int, sequence: int, on: Setting) -> list[dict[str, Any]]:
    """One row per way of losing INT8 in one layer; the costliest first."""
    whole = total_ms(graph_ops(network, batch, sequence), on)
    body = next((layer.precision for layer in network if layer.precision != "int8"), "float16")
    found = []
    for index, layer in enumerate(network):
        for if_lost, kind in _without_int8(layer):
            changed = replace(layer, kind=kind, precision=body)
            ops = graph_ops((*network[:index], changed, *network[index + 1 :]), batch, sequence)
            cost = round(total_ms(ops, on) - whole, DIGITS)
            found.append({"name": layer.name, "kind": layer.kind, "if_lost": if_lost, "estimate_cost_ms": cost})
    return sorted(found, key=lambda point: -point["estimate_cost_ms"])


def _without_int8(layer: LayerRecord) -> tuple[tuple[str, str], ...]:
    """Ways a quantized layer can lose its quantizers: (what happens, the kind it becomes)."""
    if layer.precision != "int8":
        return ()
    if layer.kind in GEMMS:
        return (("float GEMM", "float_gemm"),)
    if layer.kind in ATTENTIONS:
        return (("one of q, k, a, v: unfused", "unfused_attention"), ("all four: float fused", "float_fused_attention"))
    return (("float residual", "residual"),) if layer.kind == "residual" else ()


def _validation(device: Device, ops: Sequence[Op], source: str, notes: list[str]) -> dict[str, Any]:
    """Errors of estimates for this device on published latencies, in percent, or the range without such rows."""
    scores = read_json(VALIDATION)["devices"].get(device.name)
    score = scores[source] if scores else None
    return {
        "validated": score is not None,
        "rows": score["rows"] if score else 0,
        "mean_error_percent": score["mean_error_percent"] if score else None,
        "worst_error_percent": score["worst_error_percent"] if score else None,
        "range_ms": None if score else _power_range(device, ops),
        "notes": notes,
    }


def _extrapolated(device: Device, network: Sequence[LayerRecord], batch: int, sequence: int) -> list[str]:
    """In how far no published row is like this network and shape."""
    notes = []
    if sequence != PUBLISHED_SEQUENCE:
        notes.append(f"every published row has sequence {PUBLISHED_SEQUENCE}: sequence {sequence} is extrapolated")
    if batch > PUBLISHED_BATCH:
        notes.append(f"published rows end at batch {PUBLISHED_BATCH}: batch {batch} is extrapolated")
    widths = {layer.heads * layer.head_size for layer in network if layer.kind in ATTENTIONS}
    if not widths <= set(PUBLISHED_WIDTHS):
        notes.append(f"published rows are BERT-base and BERT-large: width {max(widths)} is extrapolated")
    if device.name != "t4":
        notes.append("FP32 has published rows on the T4 alone: its estimate here is unvalidated")
    return notes


def _power_range(device: Device, ops: Sequence[Op]) -> list[float]:
    """Estimate without a power limit and with the T4's: no published row tells which is nearer to this device."""
    return [_rounded_ms(ops, setting(device, load_coefficients(), limited)) for limited in (False, True)]


def _rounded_ms(ops: Sequence[Op], on: Setting) -> float:
    """The sum of the rounded kernels, so that layers add up to the total that is shown with them."""
    return round(math.fsum(round(ms, DIGITS) for ms in kernels_ms(ops, on)), DIGITS)


def group_name(name: str) -> str:
    """The name with its layer number replaced by a star: encoder.layer.3.output -> encoder.layer.*.output."""
    return re.sub(r"(?<=[./_])\d+(?=[./_]|$)", "*", name)
