"""Reading ONNX: files, and what their protobufs state only indirectly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import NodeProto, TensorProto
from onnx.checker import ValidationError

from qdq.errors import QdqError

FLOATS: Mapping[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}


def read_onnx(path: Path, refusal: type[QdqError], external_data: bool = False) -> onnx.ModelProto:
    """Read an ONNX file, with its external data where asked for. Raises `refusal` when it cannot be read."""
    try:
        return onnx.load(path, load_external_data=external_data)
    except (OSError, DecodeError, ValidationError) as error:
        raise refusal(f"{path}: cannot be read as ONNX ({error}); run the export stage again") from error


def standard_opset(model: onnx.ModelProto) -> int:
    """Version of the standard operator set that a model imports; 0 when it imports none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Value of an attribute, or `default`."""
    return next((onnx.helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def label(node: NodeProto) -> str:
    """A node's name, or its first output when it has none."""
    return node.name or f"{node.op_type} -> {node.output[0]}"


def type_name(element: int) -> str:
    """``FLOAT16`` and so on; the number of a type that ONNX does not know."""
    return TensorProto.DataType.Name(element) if element in TensorProto.DataType.values() else str(element)
