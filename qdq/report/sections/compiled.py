"""NVIDIA's side: kernels and bytes of the compiled TensorRT graph per layer, and the estimate of its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qdq.report.facts import Facts
from qdq.report.html import details, element, fixed, number, paragraph, section, table, text

SLOWEST = 15


def compiled(facts: Facts) -> str:
    """Section "Compiled by NVIDIA's compiler"; "" for a target it does not compile."""
    proof = (facts.get("build") or {}).get("compiled")
    if not proof:
        return ""
    batch, sequence = proof["shape"]
    int8, plain = proof["int8"], proof["float"]
    kind = plain["type"].upper()
    said = paragraph(
        f"{proof['by']} for compute capability {proof['compute_capability'] / 10}: {int8['kernels']} kernels that move "
        f"{int8['megabytes']:.1f} MB, instead of {plain['kernels']} and {plain['megabytes']:.1f} MB in {kind}.",
        f"Counted at {batch} × {sequence}: inputs, constants and outputs of all kernels. {_sentence(proof['note'])}",
    )
    return section("compiled", "Kernels on an NVIDIA GPU", said, _layers(int8["layers"], plain["layers"], kind))


def _sentence(note: str) -> str:
    return note[:1].upper() + note[1:].rstrip(".") + "."


def _layers(int8: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]], kind: str) -> str:
    """Two bars of bytes for each layer, INT8 above the float graph."""
    most = max((layer["megabytes"] for layer in (*int8, *plain)), default=0) or 1.0
    rows = []
    for index, layer in enumerate(int8):
        pair = [("INT8", layer, "bar int8")] + ([(kind, plain[index], "bar")] if index < len(plain) else [])
        for name, one, style in pair:
            said = f"{one['megabytes']:.1f} MB, {one['kernels']} kernels"
            bar = element("i", style=f"width:{100 * one['megabytes'] / most:.2f}%")
            rows.append(
                element("div", text(f"layer {index}, {name}"))
                + element("div", bar, class_=style, title=said)
                + element("div", text(said), class_="v")
            )
    return element("div", *rows, class_="bars")


def estimate(facts: Facts) -> str:
    """Section "Estimate"; "" for a target without one."""
    report = facts.get("estimate")
    if report is None:
        return ""
    # How far the estimator is off, and the three networks.
    times, checked = report["estimate_ms"], report["validation"]
    error = (
        f"On {checked['rows']} published rows of this device it is {checked['mean_error_percent']:.0f}% off on "
        f"average, {checked['worst_error_percent']:.0f}% at worst."
        if checked["validated"]
        else "No published row of this device tells how far it is off."
    )
    rows = [
        (text(name), fixed(times[key], 2), f"{times[key] / times['lowered']:.2f}")
        for name, key in (("this graph", "lowered"), ("all FP16", "float16"), ("all FP32", "float32"))
    ]
    said = paragraph(
        f"An estimate, not a measurement: {report['device']['name'].upper()}, batch {report['batch']} × sequence "
        f"{report['sequence']}, kernels {report['kernels']['from']}.",
        error,
        *(f"{note[:1].upper()}{note[1:]}." for note in checked["notes"]),
    )
    # The kernels that take longest.
    slowest = sorted(report["layers"], key=lambda layer: -layer["estimate_ms"])[:SLOWEST]
    kernels = [
        (
            text(layer["name"]),
            text(layer["kind"]),
            text(layer["precision"]),
            number(layer["estimate_ms"]),
            text(layer["bound"]),
        )
        for layer in slowest
    ]
    listed = details(
        f"the {len(kernels)} slowest kernels", table(("kernel", "kind", "type", "ms", "bound by"), kernels, (3,))
    )
    return section("estimate", "Estimate for a GPU", said, table(("", "ms", "÷ this graph"), rows, (1, 2)), listed)
