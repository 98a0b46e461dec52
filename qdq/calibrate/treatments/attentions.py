"""Attention modules of an injected module, with their projections."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from qdq.inject.families import PROJECTIONS
from qdq.inject.quantizer import QuantLinear


def attentions(module: nn.Module) -> Iterator[tuple[str, tuple[QuantLinear, QuantLinear, QuantLinear]]]:
    """Yield the path and the query, key and value projections of every attention whose three are quantized."""
    for path, owner in module.named_modules():
        if not hasattr(owner, "matmul_q_input_quantizer"):
            continue
        for names in PROJECTIONS:
            found = [getattr(owner, name, None) for name in names]
            linears = [linear for linear in found if isinstance(linear, QuantLinear)]
            if len(linears) == len(names):
                yield path, (linears[0], linears[1], linears[2])
