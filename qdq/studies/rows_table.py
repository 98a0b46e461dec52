"""The table of docs/tensorrt.md about batches without padding, from what `qdq.studies.rows` has written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdq.studies.markdown import table

FORMS: Mapping[str, str] = {
    "padded": "padded",
    "cropped": "padded, if all texts can be cropped alike (128, 64, 32)",
    "rows": "`rows` (40, 18, 9)",
    "gather": "`gather`",
}


def rows_table(report: Mapping[str, Any] | None) -> str:
    """One row per form, megabytes of a middle layer and of the whole at every fill; without a report, how to get it."""
    if report is None:
        return "No table yet: `python -m qdq.studies.rows` compiles its graphs and writes it, without a GPU."
    found = {(row["form"], row["tokens"]): row for row in report["rows"]}
    batch, sequence = report["batch"], report["sequence"]
    fills = sorted({row["tokens"] for row in report["rows"]}, reverse=True)
    headers = ["batch", "INT8 linears, attentions", "kernels: a layer, all"]
    headers += [f"MB at {tokens // batch} of {sequence} real: a layer, all" for tokens in fills]
    lines = []
    for form, title in FORMS.items():
        best = found[form, fills[0]]
        int8 = ", ".join("{}/{}".format(*best[kind]) for kind in ("linears", "attentions"))
        sizes = [found.get((form, tokens), best) for tokens in fills]
        cells = [f"{row['layer_megabytes']:.1f}, {row['megabytes']:.0f}" for row in sizes]
        lines.append([title, int8, f"{best['layer_kernels']}, {best['kernels']}", *cells])
    return (
        f"{table(headers, lines)}\n\n"
        f"{report['model']}, placement `fused`, batch {batch}, compiled with TensorRT for RTX {report['compiler']} for "
        "compute capability 7.5 (`python -m qdq.studies.rows`). MB: inputs, constants and outputs of all kernels; a "
        "layer: the third of six. Nothing ran on a GPU."
    )
