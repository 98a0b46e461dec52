"""Kernels of a graph as NVIDIA's compiler builds them: sizes, types and bytes for the model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines.estimate.devices import Device
from engines.estimate.workload import Op, shared_name
from qdq.errors import BuildError, ConfigError, Unavailable

if TYPE_CHECKING:
    from engines.tensorrt_rtx import Kernel, Tensor

PRECISIONS = {"int8": "int8", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
INTEGERS = ("bool", "int32", "int64", "uint8")  # of masks and indices: nothing multiplies them
# Words in the name of the node that a kernel of each kind is named after.
SPOKEN = {
    "gemm": ("MatMul", "Gemm"),
    "attention": ("Softmax",),
    "layernorm": ("LayerNorm",),
    "gelu": ("Gelu", "act_fn"),
}


@dataclass(frozen=True)
class KernelList:
    """The kernels of a graph, or none, and a sentence that says where they come from or why there are none."""

    ops: tuple[Op, ...]
    about: str


def compiled_kernels(model: Path, device: Device, batch: int, sequence: int) -> KernelList:
    """Compile the ONNX file for `device` and one shape; an empty list, with the reason, where that is impossible.

    Raises ConfigError for a path that is no file.
    """
    from engines.tensorrt_rtx import Compiler, Shapes

    fixed = _fixed_shape(model)
    wanted = (batch, sequence)
    if any(size not in (None, want) for size, want in zip(fixed, wanted, strict=True)):
        found = " x ".join("any" if size is None else str(size) for size in fixed)
        return KernelList((), f"the graph is made for {found}, not for {batch} x {sequence}")
    try:
        with Compiler() as compiler:
            known = [capability for capability in compiler.capabilities if capability <= device.compute_capability]
            if not known:
                return KernelList((), f"TensorRT for RTX {compiler.version} does not compile for {device.title}")
            compiled = compiler.compile(model, (max(known),), Shapes.fixed(batch, sequence))
    except (Unavailable, BuildError) as error:
        return KernelList((), str(error))
    capability = f"compute capability {max(known) / 10}"
    return KernelList(kernel_ops(compiled.kernels), f"TensorRT for RTX {compiled.version}, {capability}")


def kernel_ops(kernels: Iterable[Kernel]) -> tuple[Op, ...]:
    """The work of `kernels`, which must have static shapes. Raises ConfigError for a type the model has no rate for."""
    found = tuple(kernels)
    readers = Counter(_source(kernel) for kernel in found)
    return tuple(replace(_op(kernel), sharing=readers[_source(kernel)]) for kernel in found)


def _source(kernel: Kernel) -> tuple[str, str]:
    """Kernels of a kind that begin with the same tensor read parts of it, or one reads what is left in the cache."""
    return kernel.kind, kernel.inputs[0].name if kernel.inputs else kernel.name


def _op(kernel: Kernel) -> Op:
    """One kernel; what it reads of a table counts as gathered."""
    constants = kernel.bytes - sum(tensor.bytes for tensor in (*kernel.inputs, *kernel.outputs))
    moved = kernel.bytes - constants
    if kernel.kind == "attention":
        return _attention(kernel, moved)
    if kernel.kind == "gemm":
        return _gemm(kernel, constants, moved)
    return Op(kernel.kind, _name(kernel), _precision(kernel.outputs), 0, 0, 0, 1, constants, moved)


def _gemm(kernel: Kernel, constants: int, moved: int) -> Op:
    """A product with a weight, or of two activations (`count` of them, one per head and text)."""
    result = kernel.outputs[0].shape
    k = kernel.inputs[0].shape[-1]
    weights = [tensor for tensor in kernel.constants if tensor.elements >= k * result[-1]]
    factors = (kernel.inputs[0], *weights[:1]) if weights else kernel.inputs[:2]
    precision = _precision(factors)
    count = 1 if weights else math.prod(result[:-2])
    rows = math.prod(result[:-1]) // count
    kind = "int8_gemm" if precision == "int8" else "float_gemm"
    return Op(kind, _name(kernel), precision, rows, result[-1], k, count, constants, moved)


def _attention(kernel: Kernel, moved: int) -> Op:
    """Two products per head and text: rows x keys x head size."""
    from engines.tensorrt_rtx.coverage import INT8_PRODUCT

    *outer, rows, size = kernel.outputs[0].shape
    heads = math.prod(outer)
    values = [tensor for tensor in kernel.inputs if tensor.type in PRECISIONS]
    # Keys and values are two tensors of one size; a mask, which may be larger, is alone.
    sizes = Counter(tensor.elements for tensor in values)
    keys = max((elements for elements, times in sizes.items() if times > 1), default=max(sizes))
    precision = _precision(tensor for tensor in values if tensor.elements == keys)
    if precision == "int8" and not all(INT8_PRODUCT in name for name in kernel.instructions):
        precision = "float16"  # reads INT8 and multiplies what it makes of it
    kind = "int8_fused_attention" if precision == "int8" else "float_fused_attention"
    return Op(kind, _name(kernel), precision, rows, keys // (heads * size), size, 2 * heads, 0, moved)


def _precision(tensors: Iterable[Tensor]) -> str:
    """The widest of the tensors' types as the model names it; an INT32 or boolean result counts as FP32."""
    types = [tensor.type for tensor in tensors]
    if unknown := sorted({type for type in types if type not in (*PRECISIONS, *INTEGERS)}):
        raise ConfigError(
            f"estimate: no rate of {', '.join(unknown)} is known; give a graph of INT8, FP16, BF16 or FP32"
        )
    found = [PRECISIONS.get(type, "float32") for type in types]
    return max(found, key=tuple(PRECISIONS.values()).index)


def _name(kernel: Kernel) -> str:
    """The node whose work the kernel mainly is; the name of three projections that run as one ends in qkv."""
    words = SPOKEN.get(kernel.kind, ())
    spoken = [name for name in kernel.onnx if any(word in name for word in words)]
    if kernel.kind == "gemm" and len(spoken) > 1:
        return shared_name(spoken)
    return (spoken or kernel.onnx or [kernel.name])[0]


def _fixed_shape(model: Path) -> tuple[int | None, int | None]:
    """Batch and sequence that the graph's first input of two dimensions fixes; None where it leaves them open."""
    import onnx

    if not model.is_file():
        raise ConfigError(f"{model}: is not a file; give an ONNX graph, such as build/<model>/tensorrt/model.onnx")
    for value in onnx.load(model, load_external_data=False).graph.input:
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 2:
            return dims[0].dim_value or None, dims[1].dim_value or None
    return None, None
