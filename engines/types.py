"""Types that every engine shares: runners, tensors, and what a build leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from qdq.base.types import Feeds, Outputs


class Runner(Protocol):
    """A loaded engine (or torch model): feeds in, named float32 outputs out; owns its returned arrays."""

    def __call__(self, feeds: Feeds) -> Outputs: ...


@dataclass(frozen=True)
class TensorInfo:
    """One engine input or output. `shape` holds an int for a fixed and a name (or None) for a dynamic dimension."""

    name: str
    dtype: str  # numpy spelling: int64, float32, float16
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class NotInt8:
    """One matrix multiplication that does not run in INT8, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class MatmulNames:
    """ONNX node names of the multiplications to look for in an engine, and what is known of them beforehand."""

    linears: tuple[str, ...]  # MatMul/Gemm nodes of the encoder's linear layers
    matmuls: tuple[str, ...]  # the two attention MatMul nodes of every layer
    floats: tuple[NotInt8, ...] = ()  # pooler, head and other multiplications outside the encoder blocks
    unquantized: tuple[NotInt8, ...] = ()  # of linears and matmuls: those without Q/DQ on both operands
    computed_in: Mapping[str, str] = field(default_factory=dict)  # node of linears that the graph computes together


@dataclass(frozen=True)
class Int8Report:
    """INT8 as the built engine really runs it, read back from the engine: (running, total) per group."""

    encoder_linear: tuple[int, int]
    attention_matmul: tuple[int, int]
    not_int8: tuple[NotInt8, ...]
    inferred: tuple[str, ...] = ()  # names whose precision is concluded from a fused block, not read per op

    def as_json(self) -> dict[str, Any]:
        """The ``int8`` object of build.json."""
        return {
            "encoder_linear": list(self.encoder_linear),
            "attention_matmul": list(self.attention_matmul),
            "not_int8": [asdict(item) for item in self.not_int8],
            "inferred": list(self.inferred),
        }


@dataclass(frozen=True)
class BuiltEngine:
    """Files of a built engine and its interface. `int8` is None for a floating-point engine."""

    target: str  # one of engines.targets.TARGETS
    files: tuple[Path, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    int8: Int8Report | None
    settings: Mapping[str, Any]  # threads, precision hint, runtime version… as recorded in build.json
    compiled: Any = None  # engines.tensorrt_rtx.Compiled, where that built it
