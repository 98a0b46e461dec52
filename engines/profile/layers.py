"""Layers of a profile: one per primitive the engine ran, each in one group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from qdq.base.types import Feeds

# In the order of the table and the picture. A fused block counts where its multiplications belong.
GROUPS = {
    "gemm": "multiplications by weights, with what is fused into them (bias, GELU, quantization)",
    "attention": "the fused attention block, or its two multiplications where they are not fused",
    "softmax": "softmax on its own",
    "layernorm": "layer normalization, its scale and shift, and residual adds fused with it",
    "gelu": "activation functions on their own",
    "residual": "residual adds on their own",
    "quantize": "quantization and dequantization on their own",
    "reorder": "transposes, layout changes, type conversions, copies",
    "embeddings": "table look-ups",
    "other": "mask, shape arithmetic and everything else",
}


@dataclass(frozen=True)
class Layer:
    """One primitive of the engine, under the engine's name of it."""

    name: str
    kind: str  # the engine's own type, such as FullyConnected or MatMulIntegerToFloat
    group: str  # a key of GROUPS
    int8: bool  # of a multiplication: both factors are 8-bit
    milliseconds: float  # median over the profiled runs
    multiply_adds: int = 0  # of the multiplications by weights; 0 for everything else


@dataclass(frozen=True)
class Profiled:
    """Layers of one engine on one batch, and the latency of the whole call (median, with the counters on)."""

    layers: tuple[Layer, ...]
    call_ms: float


class Profiler(Protocol):
    """A loaded engine with its counters on. Several take turns, so that a busy moment of the machine meets all."""

    def run(self, feeds: Feeds) -> None:
        """One call, counted unless it is the first; feeds as the graph names them. Raises BuildError."""
        ...

    def result(self) -> Profiled:
        """Medians over the counted calls."""
        ...
