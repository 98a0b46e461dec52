"""Kernels of a compiled engine: tensors with types and bytes, and what can be asked of all of them together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from qdq.errors import BuildError, ConfigError

Kind = Literal["gemm", "attention", "layernorm", "gelu", "transpose", "quantize", "other"]


class Element(NamedTuple):
    """One element type: our word for it, its bits, and how the builder's log and the plan's text spell it."""

    word: str
    bits: int
    log: str
    plan: str


ELEMENTS = (
    Element("fp32", 32, "Float", "float"),
    Element("fp16", 16, "Half", "half"),
    Element("bf16", 16, "BFloat16", "bf16"),
    Element("fp8", 8, "FP8", "fp8_e4m3"),
    Element("int64", 64, "Int64", "int64"),
    Element("int32", 32, "Int32", "int32"),
    Element("int8", 8, "Int8", "int8"),
    Element("uint8", 8, "UInt8", "uint8"),
    Element("int4", 4, "Int4", "int4"),
    Element("bool", 8, "Bool", "bool"),
)
BITS: Mapping[str, int] = {element.word: element.bits for element in ELEMENTS}


@dataclass(frozen=True)
class Tensor:
    """A tensor that a kernel reads or writes. `type` is one of BITS; a dynamic dimension of `shape` is -1."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements. Raises ConfigError when a dimension is dynamic."""
        if any(size < 0 for size in self.shape):
            raise ConfigError(
                f"tensor '{self.name}' {list(self.shape)} has no size in an engine with dynamic shapes; "
                "compile for one shape (Shapes.fixed) to count bytes"
            )
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in bytes, rounded up for types below eight bits. Raises ConfigError when a dimension is dynamic."""
        return -(-self.elements * BITS[self.type] // 8)

    def __str__(self) -> str:
        """``int8 [40, 128, 384]``."""
        return f"{self.type} {list(self.shape)}"


@dataclass(frozen=True)
class Kernel:
    """One launch on the GPU.

    `onnx` names the nodes of the ONNX graph that it computes, wholly or in part; `layer` is the first encoder layer
    among theirs, None outside; `instructions` are those of a fused attention's two products, in NVIDIA's words such as
    Turing_imma_int8_int32_traits, () of every other kernel.
    """

    name: str
    kind: Kind
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    onnx: tuple[str, ...]
    layer: int | None = None
    instructions: tuple[str, ...] = ()

    @cached_property
    def bytes(self) -> int:
        """Bytes of all inputs, constants and outputs; of a table that is gathered from, what is gathered.

        An inventory, not traffic: caches and partial reads are not modelled. Raises ConfigError for a dynamic shape.
        """
        most = max((tensor.elements for tensor in self.outputs), default=0)
        constants = (
            min(tensor.bytes, -(-most * BITS[tensor.type] // 8)) if self.gathers else tensor.bytes
            for tensor in self.constants
        )
        return sum(tensor.bytes for tensor in (*self.inputs, *self.outputs)) + sum(constants)

    @property
    def gathers(self) -> bool:
        """True when the kernel reads rows of a table, such as embeddings."""
        return "Gath" in self.name


@dataclass(frozen=True)
class Gemm:
    """One matrix product as the plan states it, a kernel of its own or the core of one.

    operands: types of the two factors, words of BITS; output: the type it is written in; alpha: the FP32 number that
    the sums are multiplied by before they are written, 1.0 when they are written as they are, None when it comes from a
    tensor; onnx: the nodes it computes, with those that quantized its factors and quantize its result.
    """

    operands: tuple[str, str]
    output: str
    alpha: float | None
    onnx: tuple[str, ...]


@dataclass(frozen=True)
class Compiled:
    """An engine as the compiler has built it; nothing of it was run.

    capabilities: compute capabilities it is for, 75 is 7.5; version: of the compiler; seconds: parsing and building;
    peak_mb: memory of the process that compiled, libraries included; plan_bytes: size of the engine file; axes: those
    of batch, choices and sequence that the graph leaves open and the shapes asked for have filled.
    """

    kernels: tuple[Kernel, ...]
    gemms: tuple[Gemm, ...]
    capabilities: tuple[int, ...]
    version: str
    plan_bytes: int
    seconds: float
    peak_mb: float
    axes: tuple[str, ...] = ("batch", "sequence")

    @property
    def static(self) -> bool:
        """True when every kernel has one shape, so that bytes can be counted."""
        return all(
            size >= 0
            for kernel in self.kernels
            for tensor in (*kernel.inputs, *kernel.constants, *kernel.outputs)
            for size in tensor.shape
        )

    @property
    def megabytes(self) -> float:
        """Millions of bytes of all kernels. Raises ConfigError for an engine with dynamic shapes."""
        return sum(kernel.bytes for kernel in self.kernels) / 1e6

    def per_layer(self) -> dict[int | None, tuple[int, float]]:
        """Kernels and megabytes of every encoder layer, in order; None, the last, is what is in no layer.

        Raises ConfigError for an engine with dynamic shapes.
        """
        order = sorted({kernel.layer for kernel in self.kernels}, key=lambda layer: (layer is None, layer))
        groups = {layer: [kernel for kernel in self.kernels if kernel.layer == layer] for layer in order}
        return {layer: (len(group), sum(kernel.bytes for kernel in group) / 1e6) for layer, group in groups.items()}


@dataclass(frozen=True)
class NodeError:
    """One node that the parser refuses: its name and operator, both "" when the reason is about the whole graph."""

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        """``MatMulInteger 'mi': reason``, or the reason alone."""
        return f"{self.operator or 'node'} '{self.node}': {self.reason}" if self.node or self.operator else self.reason


class Refused(BuildError):
    """The compiler refuses a graph; `errors` holds every reason, those of the parser with their nodes."""

    def __init__(self, message: str, errors: tuple[NodeError, ...]) -> None:
        super().__init__(message)
        self.errors = errors
