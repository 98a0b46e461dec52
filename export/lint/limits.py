"""Platform a graph is checked for (TensorRT release, GPU generation, sequence length) and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qdq.base.config import choice
from qdq.errors import ConfigError


@dataclass(frozen=True)
class Release:
    """A TensorRT release series; None where the parser looks at no number."""

    name: str
    max_opset: int | None  # newest opset any release of the series parses
    sure_opset: int | None  # newest opset every release of the series parses
    max_ir: int | None  # newest IR version the ONNX package of the series knows


# 10.0 takes opset 9-20 and 10.15 takes 9-24 (onnx-tensorrt, docs/operators.md of either), 11.x takes 9-25 with ONNX
# 1.20 (ONNX Opset Guide). IR versions: ONNX 1.16 has IR 10, ONNX 1.19 IR 12, ONNX 1.20 IR 13. TensorRT for RTX was
# given opsets up to 30 and IR versions up to 15, and built them all.
RTX = "rtx"
RELEASES: Mapping[str, Release] = {
    "trt10": Release("TensorRT 10.x", 24, 20, 12),
    "trt11": Release("TensorRT 11.x", 25, 24, 13),
    RTX: Release("TensorRT for RTX 1.7", None, None, None),
}
MIN_OPSET = 13  # the first whose QuantizeLinear and DequantizeLinear have an axis

MIN_SM = 75  # T4; INT8 and FP16 fused attention and every current TensorRT start here
# First compute capability with a type (TensorRT support matrix; INT4 as the compiler says).
FIRST_SM: Mapping[str, int] = {"bf16": 80, "fp8": 89, "int4": 80}

INT8_HEAD_SIZES = (16, 32, 64)
BF16_UNFUSED = (16, 32)  # those of them that do not fuse in a BF16 body
INT8_MAX_SEQUENCE = 512
INT8_LONE_HEAD = 64  # size from which an attention with a single head fuses
TURING_MAX_SEQUENCE = {64: 384}  # of a profile for SM75, by head size; a graph of fixed shapes fuses up to 512
FLOAT_HEAD_SIZES = (16, 256)  # inclusive, multiples of 8
MIN_GEMM = 16  # K and N


@dataclass(frozen=True)
class Platform:
    """`target` is trt10, trt11 or rtx, `sm` the compute capability as two or three digits (75 is 7.5), `sequence`
    tokens: the longest the engine takes, where the graph leaves them open.
    """

    target: str
    sm: int
    sequence: int

    def __post_init__(self) -> None:
        choice(self.target, RELEASES, "--target")
        if not 50 <= self.sm <= 199:
            raise ConfigError(f"--sm {self.sm}: write the compute capability without the point, 75 for 7.5 (T4)")
        if self.sequence < 1:
            raise ConfigError(f"--sequence {self.sequence}: must be at least 1 token")

    @property
    def release(self) -> Release:
        """The release series with its limits."""
        return RELEASES[self.target]


def int8_attention_limits(
    head_size: int | None,
    longest: int,
    sm: int,
    fixed: bool = False,
    *,
    heads: int | None = None,
    body: str = "fp16",
) -> tuple[str, ...]:
    """Return a sentence for each limit of INT8 fused attention that heads of a size exceed; empty where it can fuse.

    `longest`: the profile's largest sequence, whatever length it is tuned for; of a `fixed` shape the only one. `body`:
    the float type around the products (fp16, bf16 or fp32). None is unknown and exceeds nothing. Every limit was found
    by TensorRT for RTX 1.7.1's compiler: the first length and size beyond it is not fused.
    """
    problems = []
    if head_size is not None and head_size not in INT8_HEAD_SIZES:
        problems.append(f"its head size is {head_size}, INT8 fused attention takes 16, 32 or 64")
    elif heads == 1 and head_size is not None and head_size < INT8_LONE_HEAD:
        problems.append(f"it has one head of {head_size}, a single head fuses in INT8 from {INT8_LONE_HEAD} on")
    if longest > INT8_MAX_SEQUENCE:
        problems.append(f"its sequence is {longest}, INT8 fused attention takes at most {INT8_MAX_SEQUENCE}")
    elif head_size is not None and not fixed and sm == MIN_SM:
        turing = TURING_MAX_SEQUENCE.get(head_size, INT8_MAX_SEQUENCE)
        if longest > turing:
            problems.append(
                f"its profile reaches sequence {longest}, INT8 fused attention with heads of {head_size} takes at most "
                f"{turing} on SM {sm // 10}.{sm % 10}"
            )
    if body == "bf16" and head_size in BF16_UNFUSED:
        problems.append(f"its body is BF16, in which INT8 attention with heads of {head_size} does not fuse (64 does)")
    return (*problems, *device_limits(sm))


def device_limits(sm: int) -> tuple[str, ...]:
    """Return why no attention fuses at all on a compute capability; () from 7.5 on."""
    return (f"compute capability {sm / 10} is below 7.5, where fused attention starts",) if sm < MIN_SM else ()
