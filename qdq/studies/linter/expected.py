"""Graphs on which linter and compiler differ, each with its reason; what differs and is not here fails the proof."""

from __future__ import annotations

from collections.abc import Mapping

PARTLY = "of a merged q, k and v only v is quantized: INT8 in the first layer, given up by the compiler in the others"
REASONS: Mapping[str, str] = {
    "codes as output": "the edit adds an output, and the kernel that writes it",
    "codes into Cast": "the edit adds a mean over the codes and an addition, which are kernels of their own",
    "form 62": PARTLY,
    "form 74": PARTLY,
    "quantized scalar": "the edit adds a mean and an addition, which are kernels of their own",
}


def reason_of(name: str) -> str:
    """Return the reason why a graph may differ; "" when it may not."""
    return REASONS.get(name, "")
