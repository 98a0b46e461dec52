"""The worth of each change of the TensorRT lowering on a T4: compiled kernels, and the time the model gives them.

An encoder with a classifier is written once per form, from FP16 to all changes together, and compiled. Nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engines.estimate.devices import find_device
from engines.estimate.model import load_coefficients, setting, total_ms
from engines.estimate.workload import ENCODERS, Encoder, Op
from qdq.studies.estimate.forms import FLOAT16, LOWERED, Form, Network
from qdq.studies.estimate.networks import compile_network
from qdq.studies.study import RESULTS

if TYPE_CHECKING:
    from engines.tensorrt_rtx import Compiler

LOWERING = RESULTS / "estimate" / "lowering.json"
DEVICE, BATCH, SEQUENCE = "t4", 40, 128
SHAPES: Mapping[str, Encoder] = {"MiniLM": Encoder(6, 384, 12, 1536), "BERT-base": ENCODERS["bert-base"]}
WIDE_HEADS = Encoder(12, 768, 16, 3072)  # heads of 48, which INT8 attention cannot be fused for

RATIO = replace(LOWERED, scales="ratio")
MERGED = replace(RATIO, merged=True)
SHARED = replace(MERGED, skip="shared")
CODES = replace(SHARED, codes="attention")
FEW_ROWS = replace(CODES, few_rows=True)
# Each adds to the one before it.
STEPS: Mapping[str, Form] = {
    "FP16": FLOAT16,
    "INT8, scales per channel": LOWERED,
    "+ scale per tensor, ratio behind": RATIO,
    "+ one product for q, k, v": MERGED,
    "+ skip from the linears' Q": SHARED,
    "+ codes of attention's products": CODES,
    "+ needed rows": FEW_ROWS,
    "+ codes of all products": replace(FEW_ROWS, codes="all"),
    "FP16, needed rows": replace(FLOAT16, few_rows=True),
}
# Beside all the changes, one thing is different.
ATTENTION: Mapping[str, Form] = {
    "float": replace(FEW_ROWS, attention=""),
    "INT8": FEW_ROWS,
    "q and k alone INT8": replace(FEW_ROWS, attention="qk"),
}


def lowering_json(compiler: Compiler) -> dict[str, Any]:
    """The content of docs/results/estimate/lowering.json. Raises Unavailable, BuildError."""
    return {
        "compiler": compiler.version,
        "device": find_device(DEVICE).title,
        "batch": BATCH,
        "sequence": SEQUENCE,
        "steps": {name: _rows(compiler, encoder, STEPS) for name, encoder in SHAPES.items()},
        "attention": {
            **{f"{name}, heads of {_head(found)}": _rows(compiler, found, ATTENTION) for name, found in SHAPES.items()},
            f"BERT-base, heads of {_head(WIDE_HEADS)}": _rows(compiler, WIDE_HEADS, ATTENTION),
        },
    }


def _head(encoder: Encoder) -> int:
    return encoder.hidden // encoder.heads


def _rows(compiler: Compiler, encoder: Encoder, forms: Mapping[str, Form]) -> list[dict[str, Any]]:
    """One row per form: kernels and megabytes of a middle layer and of the whole, and the estimates."""
    on = setting(find_device(DEVICE), load_coefficients())
    rows = []
    for name, form in forms.items():
        kernels = compile_network(compiler, Network(encoder, form, BATCH, SEQUENCE))
        whole = kernels.of(encoder.layers)
        single = compile_network(compiler, Network(encoder, form, 1, SEQUENCE)).of(encoder.layers)
        rows.append(
            {
                "form": name,
                "layer_kernels": len(kernels.middle),
                "layer_megabytes": _megabytes(kernels.middle),
                "kernels": len(whole),
                "megabytes": _megabytes(whole),
                "estimate_ms": round(total_ms(whole, on), 3),
                "estimate_ms_batch_1": round(total_ms(single, on), 3),
            }
        )
    return rows


def _megabytes(ops: tuple[Op, ...]) -> float:
    return round(sum(op.weight_bytes + op.activation_bytes for op in ops) / 1e6, 2)
