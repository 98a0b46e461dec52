"""Graphs on which linter and compiler differ, each with its reason; what differs and is not here fails the proof."""

from __future__ import annotations

from collections.abc import Mapping

PARTLY = "of a merged q, k and v only v is quantized: INT8 in the first layer, given up in the later ones"
# Name of a graph, or a part of it between " and " -> reason.
REASONS: Mapping[str, str] = {
    "codes as output": "the edit adds an output, and the kernel that writes it",
    "codes into Cast": "the edit adds a mean over the codes and an addition, which are kernels of their own",
    "quantized scalar": "the edit adds a mean and an addition, which are kernels of their own",
    "Q per channel": "refused in an FP32 body, and no header allows scales per channel on an activation; in FP16 it is "
    "built, with the linears behind in float",
    "form 62": PARTLY,
    "form 74": PARTLY,
}


def reason_of(name: str) -> str:
    """Return the reason why a graph may differ; "" when it may not."""
    parts = [name, *name.partition(",")[0].split(" and ")]
    return next((REASONS[part] for part in parts if part in REASONS), "")
