"""The table of docs/uie.md: span F1 of UIE in FP32 and of its INT8 engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdq.studies.markdown import table

HEADERS = ("prompts", "engine", "INT8 linears, attention matmuls", "F1 FP32 → INT8", "points lost", "equal answers")
COUNTED = ("encoder_linear", "attention_matmul")


def uie_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per set and engine, then the model they are of."""
    rows = [_row(result, target) for result in results.values() for target in result["engines"]]
    if not rows:
        return "Not measured yet."
    first = next(iter(results.values()))["training"]
    trained = "; ".join(
        f"{result['set']}: {result['training']['prompts']} training prompts, {result['training']['epochs']} epochs, "
        f"rows of {result['sequence']} tokens, scored on {' and '.join(result['scored_on'])}"
        for result in results.values()
    )
    return (
        f"{table(HEADERS, rows)}\n\n"
        f"The first {first['layers']} layers of all-MiniLM-L6-v2 with a table of single characters, fine-tuned here, "
        f"since no pretrained UIE is at hand: what quantization changes counts, and F1 itself is that of a "
        f"few minutes of training. Points "
        f"lost with their 95 % bootstrap interval over prompts. {trained}."
    )


def _row(result: Mapping[str, Any], target: str) -> tuple[object, ...]:
    engine = result["engines"][target]
    f1 = engine["metrics"]["f1"]
    low, high = f1["drop_interval"]
    linears, products = (f"{done}/{total}" for done, total in (engine["int8"][n] for n in COUNTED))
    return (
        f"{result['set']}, {engine['samples']}",
        target,
        f"{linears}, {products}",
        f"{f1['fp32']:.4f} → {f1['int8']:.4f}",
        f"{f1['drop_points']:+.2f} [{low:+.2f}, {high:+.2f}]",
        f"{engine['agreement']:.2%}",
    )
