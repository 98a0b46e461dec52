"""The interface of an ONNX file: its inputs and outputs as an engine built from it has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.types import TensorInfo
from qdq.errors import BuildError


def interface(model: Path) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Inputs and outputs of an ONNX file; the engine's are the same, a strongly typed build changes none.

    Raises BuildError when the file cannot be read.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(model, load_external_data=False).graph
    except (OSError, DecodeError) as error:
        raise BuildError(f"{model} cannot be read as ONNX ({error}); run the lower stage again") from error
    weights = {initializer.name for initializer in graph.initializer}
    inputs = tuple(_tensor_info(value) for value in graph.input if value.name not in weights)
    return inputs, tuple(_tensor_info(value) for value in graph.output)


def _tensor_info(value: Any) -> TensorInfo:
    from onnx import helper

    tensor = value.type.tensor_type
    dimensions = (
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)  # None: dynamic without a name
        for dim in tensor.shape.dim
    )
    return TensorInfo(value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, tuple(dimensions))
