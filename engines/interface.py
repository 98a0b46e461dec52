"""The interface of an ONNX file: its inputs and outputs as an engine built from it has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.types import TensorInfo
from qdq.base.types import Feeds
from qdq.errors import BuildError

if TYPE_CHECKING:
    import onnx


def interface(model: Path) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Inputs and outputs of an ONNX file; no build changes them. External data need not be there.

    Raises BuildError when the file cannot be read or holds no graph.
    """
    graph = read_model(model).graph
    if not graph.output:  # an empty file parses as an empty model
        raise BuildError(f"{model} holds no graph; run the lower stage again")
    weights = {initializer.name for initializer in graph.initializer}
    inputs = tuple(_tensor_info(value) for value in graph.input if value.name not in weights)
    return inputs, tuple(_tensor_info(value) for value in graph.output)


def read_model(model: Path) -> onnx.ModelProto:
    """An ONNX file without its external data. Raises BuildError when it cannot be read."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(model, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise BuildError(f"{model} cannot be read as ONNX ({error}); run the lower stage again") from error


def graph_files(graph: Path) -> tuple[Path, ...]:
    """An ONNX file, and its external data when it has some."""
    data = graph.with_name(graph.name + ".data")
    return (graph, data) if data.is_file() else (graph,)


def feeds_for(ranks: Mapping[str, int], feeds: Feeds) -> dict[str, Any]:
    """The inputs of a model out of `feeds`: by name with their rank, all of one shape as every encoder's are.

    Raises BuildError naming the input that is missing or does not fit. Not left to the runtimes: OpenVINO 2026.4
    computes with whatever an earlier call left in a missing input, and on one thread it drops the error of a run that
    failed and returns the results of the one before.
    """
    missing = [name for name in ranks if name not in feeds]
    if missing:
        raise BuildError(f"the batch lacks input(s) {', '.join(missing)} of the engine; encode it for this model")
    wanted = {name: feeds[name] for name in ranks}
    if len({array.shape for array in wanted.values()}) > 1 or any(feeds[name].ndim != ranks[name] for name in ranks):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in wanted.items())
        raise BuildError(f"the engine takes inputs of one shape and rank {max(ranks.values())}; the batch has {shapes}")
    return wanted


def _tensor_info(value: Any) -> TensorInfo:
    from onnx import helper

    tensor = value.type.tensor_type
    dimensions = (
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)  # None: dynamic without a name
        for dim in tensor.shape.dim
    )
    return TensorInfo(value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, tuple(dimensions))
