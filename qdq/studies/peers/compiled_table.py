"""Report of `qdq.studies.peers.compiled` as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdq.studies.markdown import fixed, named, table

LABELS = {
    "qdq": "**qdq**, default placement",
    "fp16": "FP16, not quantized",
    "modelopt": "ModelOpt, INT8, FP16 body",
    "onnxruntime-static": "ONNX Runtime static, Q/DQ, its CPU defaults (UINT8)",
    "onnxruntime-static-s8": "ONNX Runtime static, Q/DQ, symmetric INT8",
}


def render_compiled(report: Mapping[str, Any]) -> str:
    """One row per graph, one cell per compute capability, and what it was compiled with."""
    capabilities = list(next(row["sm"] for row in report["rows"].values() if "sm" in row))
    headers = ["graph", "accuracy", "agreement", "logit MSE"]
    headers += [f"SM{sm}: kernels, MB; INT8 linears, attentions; FP32 scales" for sm in capabilities]
    rows = []
    # A tool that failed has its reason in place of every figure.
    for name, row in ((name, report["rows"][name]) for name in LABELS):
        if "failed" in row:
            rows.append([LABELS[name], "–", "–", "–", *(f"the tool failed: {row['failed']}" for _ in capabilities)])
            continue
        accuracy = row["accuracy"]
        metric = fixed(accuracy["metric"] and accuracy["metric"]["int8"], 4)
        scores = [metric, fixed(accuracy["agreement"], 4), fixed(accuracy["logit_mse"], 4)]
        rows.append([LABELS[name], *scores, *(_cell(row["sm"][sm]) for sm in capabilities)])
    # Below the table, what it was measured with.
    accuracy = report["rows"]["qdq"]["accuracy"]
    floating = f"{accuracy['metric']['fp32']:.4f}" if accuracy["metric"] else "not known"
    batch, sequence = report["shape"]
    return (
        f"{table(headers, rows)}\n\n{report['model']}, batch {batch} × sequence {sequence}, compiled with TensorRT for "
        f"RTX {report['compiler']}; {named(report['tools'], tuple(report['tools']))}. Accuracy (FP32: {floating}), "
        f"agreement and MSE against torch FP32 over {accuracy['samples']} texts, by ONNX Runtime unoptimized. "
        "MB: inputs, constants and outputs of all kernels. Nothing ran on a GPU."
    )


def _cell(found: Mapping[str, Any]) -> str:
    if "refused" in found:
        where = f" at {found['operator']}" if found["operator"] else ""
        return f"refused{where}: {found['refused']}"
    shares = ("{}/{}".format(*found[kind]) for kind in ("linears", "attentions", "fp32_scales"))
    linears, attentions, scales = shares
    return f"{found['kernels']}, {found['megabytes']:.0f}; {linears}, {attentions}; {scales}"
