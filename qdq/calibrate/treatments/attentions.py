"""Where attention's projections are in an injected module, and which linear reads its context."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from qdq.inject.quantizer import QuantLinear

if TYPE_CHECKING:
    pass

# Attributes of an attention module that hold the query, key and value projections, in the families' spellings.
PROJECTIONS = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"))


def attentions(module: nn.Module) -> Iterator[tuple[str, tuple[QuantLinear, QuantLinear, QuantLinear]]]:
    """Path of every attention module and its query, key and value projections, where all three are quantized."""
    for path, owner in module.named_modules():
        if not hasattr(owner, "matmul_q_input_quantizer"):
            continue
        for names in PROJECTIONS:
            found = [getattr(owner, name, None) for name in names]
            linears = [linear for linear in found if isinstance(linear, QuantLinear)]
            if len(linears) == len(names):
                yield path, (linears[0], linears[1], linears[2])
