"""ONNX Runtime with every optimization off: runs a graph node by node as it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qdq.errors import ParityError, Unavailable

Array = NDArray[Any]


def open_unoptimized(model: str | bytes, folder: Path) -> Any:
    """Open an InferenceSession on the CPU for a file, or for a serialized model whose external data lies in `folder`.

    Raises ParityError when the graph cannot be loaded, Unavailable when ONNX Runtime is not installed.
    """
    try:
        import onnxruntime as ort
        from onnxruntime.capi import onnxruntime_pybind11_state as errors
    except ImportError as error:
        raise Unavailable("parity needs ONNX Runtime, which is not installed; pip install .[cpu]") from error
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3  # initializers of the nodes cut off are unused, and it would say so of each
    if isinstance(model, bytes):
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    refusals = (errors.Fail, errors.InvalidGraph, errors.InvalidArgument, errors.NoSuchFile, errors.NotImplemented)
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except refusals as error:
        raise ParityError(f"ONNX Runtime cannot load the graph in {folder}: {error}; export again") from error


def run(session: Any, feeds: Mapping[str, Array], names: Sequence[str]) -> list[Array]:
    """Run a session on a batch that may hold more than the graph's inputs; returns the outputs `names`.

    Raises ParityError for a missing input.
    """
    wanted = [value.name for value in session.get_inputs()]
    missing = [name for name in wanted if name not in feeds]
    if missing:
        raise ParityError(f"the batch lacks input(s) {', '.join(missing)} of the graph; encode it for this model")
    outputs: list[Array] = session.run(list(names), {name: feeds[name] for name in wanted})
    return outputs
