"""Float types of a TensorRT graph's body (everything in it that is not quantized), and the range of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

Body = Literal["fp16", "bf16", "fp32"]
MARGIN = 2  # between the largest measured value and the largest one of the type


@dataclass(frozen=True)
class Half:
    """A 16-bit floating-point type."""

    name: str  # fp16 | bf16, as in options and tensor names
    element: int  # onnx.TensorProto element type
    largest: float  # finite value
    smallest: float  # normal value; below it precision is lost bit by bit

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of numpy arrays that hold it."""
        return helper.tensor_dtype_to_np_dtype(self.element)

    @property
    def title(self) -> str:
        """Spelling in messages."""
        return self.name.upper()

    @property
    def limit(self) -> float:
        """Largest measured value that is trusted to fit."""
        return self.largest / MARGIN

    @property
    def holds(self) -> str:
        """Clause for messages: "FP16 holds 65504"."""
        return f"{self.title} holds {self.largest:.6g}"

    def array(self, values: NDArray[Any]) -> NDArray[Any]:
        """Round `values` to this type; infinite beyond its range."""
        with np.errstate(over="ignore"):
            return values.astype(self.dtype)


HALVES: Mapping[str, Half] = {
    "fp16": Half("fp16", TensorProto.FLOAT16, 65504.0, 2.0**-14),
    "bf16": Half("bf16", TensorProto.BFLOAT16, (2 - 2.0**-7) * 2.0**127, 2.0**-126),
}
