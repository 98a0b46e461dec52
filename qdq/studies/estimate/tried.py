"""`python -m qdq.studies.estimate.tried`: forms of an encoder layer that were tried beside the lowering's, compiled.

Writes docs/results/estimate/tried.json and the table of docs/tensorrt.md. Kernels and bytes are the compiler's; nothing
is run.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qdq.base.artifacts import write_json
from qdq.studies import pages
from qdq.studies.estimate.forms import FLOAT16, NARROW, Form, Network
from qdq.studies.estimate.lowering import BATCH, CODES, SEQUENCE, SHAPES
from qdq.studies.estimate.networks import compile_network
from qdq.studies.study import RESULTS, exit_code

TRIED = RESULTS / "estimate" / "tried.json"
SHAPE = "MiniLM"
# Form, and what speaks against it; the first two are what the others are compared with.
FORMS: Mapping[str, tuple[Form, str]] = {
    "FP16, not quantized": (FLOAT16, "–"),
    "the lowering, skips from the linears' Q": (CODES, "–"),
    "the lowering, skips float": (replace(CODES, skip="float"), "what a skip gets that cannot share a Q"),
    "skip and branch with pairs of their own (QDQBERT)": (
        replace(CODES, skip="own"),
        "both are rounded in registers: accuracy lost, nothing saved over float",
    ),
    "codes for every product (`--product-codes all`)": (
        replace(CODES, codes="all"),
        "the feed-forward part has the outliers: twice the error of the answers",
    ),
    "products float": (replace(CODES, codes=""), "written and read as FP16"),
    "codes behind the bias, in place of behind the product": (
        replace(CODES, codes="", narrow=True),
        "the product writes FP16 when a ratio or bias stands before the Q",
    ),
    "codes, and weights with a scale per channel": (
        replace(CODES, codes="all", scales="channel"),
        "the product cannot requantize with several scales",
    ),
    "query, key and value as three products": (replace(CODES, merged=False), "a kernel per product moves it to heads"),
    "no bias, no ratio, codes at once": (
        NARROW,
        "needs weights with one scale and a model without biases: not exact",
    ),
    "attention float": (replace(CODES, attention=""), "FP16 heads, and a transpose more"),
    "query and key alone INT8": (replace(CODES, attention="qk"), "no fused attention: scores go through memory"),
}


def tried() -> dict[str, Any]:
    """The content of tried.json: kernels and megabytes of a middle layer per form. Raises Unavailable, BuildError."""
    from engines.tensorrt_rtx import Compiler

    rows = []
    with Compiler() as compiler:
        for name, (form, why) in FORMS.items():
            middle = compile_network(compiler, Network(SHAPES[SHAPE], form, BATCH, SEQUENCE)).middle
            megabytes = sum(op.weight_bytes + op.activation_bytes for op in middle) / 1e6
            rows.append({"form": name, "kernels": len(middle), "megabytes": round(megabytes, 1), "why": why})
        version = compiler.version
    return {"compiler": version, "shape": SHAPE, "batch": BATCH, "sequence": SEQUENCE, "rows": rows}


def main() -> None:
    """Compile every form anew, then write the page."""
    write_json(TRIED, tried())
    pages.main()


if __name__ == "__main__":
    sys.exit(exit_code(main))
