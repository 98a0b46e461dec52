"""Platform a graph is checked for (TensorRT release, GPU generation, sequence length) and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qdq.base.config import choice
from qdq.errors import ConfigError


@dataclass(frozen=True)
class Release:
    """A TensorRT release series."""

    name: str
    max_opset: int  # newest opset any release of the series parses
    sure_opset: int  # newest opset every release of the series parses
    max_ir: int  # newest IR version the ONNX package of the series knows


# 10.0 takes opset 9-20 and 10.15 takes 9-24 (onnx-tensorrt, docs/operators.md of either), 11.x takes 9-25 with ONNX
# 1.20 (ONNX Opset Guide). IR versions: ONNX 1.16 has IR 10, ONNX 1.19 IR 12, ONNX 1.20 IR 13.
RELEASES: Mapping[str, Release] = {
    "trt10": Release("TensorRT 10.x", 24, 20, 12),
    "trt11": Release("TensorRT 11.x", 25, 24, 13),
}
MIN_OPSET = 13  # the first with the axis attribute, without which no weight can be quantized per channel

MIN_SM = 75  # T4; INT8 and FP16 fused attention and every current TensorRT start here
INT8_HEAD_SIZES = (16, 32, 64)
INT8_MAX_SEQUENCE = 512
FLOAT_HEAD_SIZES = (16, 256)  # inclusive, multiples of 8
MIN_GEMM = 16  # K and N


@dataclass(frozen=True)
class Platform:
    """`target` is trt10 or trt11, `sm` the compute capability as two or three digits (75 is 7.5), `sequence` tokens."""

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
