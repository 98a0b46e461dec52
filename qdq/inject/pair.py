"""The computation of one point: fake quantization, or its two nodes in a trace, and traces that cannot hold those."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from qdq.errors import ExportError

T = TypeVar("T")


class FakeQuantize(torch.autograd.Function):
    """``clamp(round(x / scale), low, high) * scale`` with a straight-through gradient inside the clipping range.

    The gradient is that of ``clamp(x, low * scale, high * scale)``: rounding counts as the identity.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        scaled = x / scale
        ctx.save_for_backward((scaled < low) | (scaled > high))
        return scaled.round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (outside,) = ctx.saved_tensors
        return gradients[0].masked_fill(outside, 0), None, None, None


def quantize_pair(inputs: Tensor, scale: Tensor, zero: Tensor, axis: int | None = None) -> Tensor:
    """QuantizeLinear and DequantizeLinear with a constant scale ([], or [C] along `axis`), 8 bits, zero-point `zero`.

    A torch function: `export.record` sees the call as one. In torch's own export it becomes the two nodes.
    """
    if has_torch_function_unary(inputs):
        return handle_torch_function(quantize_pair, (inputs,), inputs, scale, zero, axis)
    if not torch.compiler.is_exporting():
        refuse_trace("a quantizer")
        shaped = scale if axis is None else scale.reshape([-1 if d == axis else 1 for d in range(inputs.dim())])
        result: Tensor = FakeQuantize.apply(inputs, shaped, -128, 127)  # type: ignore[no-untyped-call]
        return result
    attributes: dict[str, Any] = {"axis": axis} if axis is not None else {}
    codes = torch.onnx.ops.symbolic(
        "QuantizeLinear", (inputs, scale, zero), attributes, dtype=torch.int8, shape=inputs.shape, version=20
    )
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", (codes, scale, zero), attributes, dtype=torch.float32, shape=inputs.shape, version=20
    )


def refuse_trace(point: str) -> None:
    """Raise ExportError in a trace that cannot hold QuantizeLinear, where `point` would become Round and Clip."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise ExportError(
            f"{point}: the TorchScript exporter would write Round and Clip in place of QuantizeLinear and "
            "DequantizeLinear; call torch.onnx.export(model, …) with dynamo=True, its default, or 'qdq export'"
        )
    if torch.compiler.is_exporting():
        raise ExportError(
            f"{point}: is in training and has no range yet; finish the training and export the checkpoint it writes"
        )


def aside(function: Callable[[], T]) -> T:
    """Call `function` outside of the trace that is going on: on a thread, because traces belong to threads.

    Tensors it reads must be real ones; those of a traced module's attributes are placeholders.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()
