"""Which passes run for which target, in which order, and why. Read this file aloud to know what lowering does."""

from __future__ import annotations

from collections.abc import Mapping

from export.passes.base import Pass
from export.passes.recode_unsigned import recode_unsigned
from export.passes.share_quantizers import share_quantizers
from qdq.config import choice

SHARE = Pass(
    "share_quantizers",
    "one QuantizeLinear per tensor and scale: quantizing the same values twice costs a pass over memory each time, "
    "and TensorRT wants q, k and v to read one Q",
    share_quantizers,
)

RECODE = Pass(
    "recode_unsigned",
    "ONNX Runtime on x86 fuses MatMul only with unsigned activations (u8 with zero-point 128 codes exactly the same "
    "values as s8 with 0); with s8 it leaves linears whose Q feeds several DQs in float. Last, so that the passes "
    "before it see the canonical coding",
    recode_unsigned,
)

# OpenVINO and TensorRT take the canonical symmetric s8 graph as it is.
PIPELINES: Mapping[str, tuple[Pass, ...]] = {
    "openvino": (SHARE,),
    "onnxruntime": (SHARE, RECODE),
    "tensorrt": (SHARE,),
}


def passes_for(target: str) -> tuple[Pass, ...]:
    """The ordered passes of a target. Raises ConfigError naming the nearest target."""
    return PIPELINES[choice(target, PIPELINES, "target")]
