"""The generated parts of docs/estimate.md, and of docs/tensorrt.md what was tried beside the lowering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qdq.studies.markdown import table


def validation_tables(result: Mapping[str, Any]) -> str:
    """The validation as Markdown: groups, coefficients, the target shape, then row by row."""
    groups = [
        [
            group["name"],
            group["compiled"]["rows"],
            *_errors(group["compiled"]),
            group["compiled"]["worst_row"],
            *_errors(group["predicted"]),
        ]
        for group in result["groups"]
    ]
    rows = [
        [row["row"], row["published_ms"], row["estimate_ms"], f"{row['error_percent']:+}", row["use"]]
        for row in result["rows"]
    ]
    # Fitted values, and the one shape whose published latency is interpolated.
    coefficients = [[f"`{name}`", value] for name, value in sorted(result["coefficients"].items())]
    target = result["target"]
    estimated, published = target["estimate_ms"], target["interpolated_ms"]
    headers = ["estimate against published latency", "rows", "mean error %", "worst error %", "worst row"]
    return "\n\n".join(
        [
            table([*headers, "mean, kernels predicted", "worst, kernels predicted"], groups),
            table(["fitted coefficient", "value"], coefficients),
            f"BERT-base, T4, batch 40 x sequence 128: estimated {estimated['int8']} ms INT8 and {estimated['float16']} "
            f"ms FP16, ratio {target['ratio']} (published rows interpolated: {published['int8']} and "
            f"{published['float16']} ms, ratio {published['float16'] / published['int8']:.2f}).",
            table(["row", "published ms", "estimate ms", "error %", "use"], rows),
        ]
    )


def _errors(score: Mapping[str, Any]) -> list[str]:
    return [str(score["mean_error_percent"]), f"{score['worst_error_percent']:+}"]


def lowering_tables(result: Mapping[str, Any]) -> str:
    """One table per encoder with a row per change, then the attentions, and what was compiled."""
    steps = [f"**{name}**\n\n{_table('lowering', rows)}" for name, rows in result["steps"].items()]
    attention = [f"**{name}**\n\n{_table('attention', rows)}" for name, rows in result["attention"].items()]
    about = (
        f"Kernels and bytes as compiled by TensorRT for RTX {result['compiler']}, batch {result['batch']} x sequence "
        f"{result['sequence']}; estimates for {result['device']}. Nothing was run."
    )
    return "\n\n".join([*steps, "All changes, and attention as said:", *attention, about])


def _table(what: str, rows: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for row in rows:
        layer, whole = (f"{row[name]:.1f}" for name in ("layer_megabytes", "megabytes"))
        sizes = [row["layer_kernels"], layer, row["kernels"], whole]
        times = (cell for name in ("estimate_ms", "estimate_ms_batch_1") for cell in _time(row[name], rows[0][name]))
        cells.append([row["form"], *sizes, *times])
    headers = [what, "kernels, middle layer", "MB, middle layer", "kernels", "MB"]
    headers += ["estimate ms", f"÷ {rows[0]['form']}", "ms at batch 1", f"÷ {rows[0]['form']}"]
    return table(headers, cells, "--:")


def _time(ms: float, first: float) -> tuple[str, str]:
    return f"{ms:.2f}", f"{ms / first:.3f}"


def tried_table(report: Mapping[str, Any]) -> str:
    """Forms of a layer that were tried, one per row, with what speaks against it."""
    headers = ["form of a middle layer", "kernels", "MB", "why not"]
    rows = ([row["form"], row["kernels"], f"{row['megabytes']:.1f}", row["why"]] for row in report["rows"])
    return (
        f"{table(headers, rows)}\n\n{report['shape']}'s sizes, {report['batch']} × {report['sequence']}, compiled with "
        f"TensorRT for RTX {report['compiler']} for compute capabilities 7.5 and 8.0 (`python -m "
        "qdq.studies.estimate.tried`). MB: inputs, constants and outputs of all kernels."
    )
