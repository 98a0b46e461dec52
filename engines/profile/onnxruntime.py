"""Per-layer times of an ONNX Runtime session, from its own profile of every kernel call."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from engines.onnxruntime.build import INT8_OPERATORS, OnnxRuntimeSettings, failures, open_session, reason
from engines.onnxruntime.runner import SessionInputs
from engines.profile.layers import Layer, Profiled
from qdq.base.types import Feeds
from qdq.errors import BuildError

KERNEL = "_kernel_time"  # how ONNX Runtime's profile ends the name of a node's own time

# By operator of the optimized graph.
OPERATORS: Mapping[str, frozenset[str]] = {
    "gemm": INT8_OPERATORS | {"FusedGemm", "FusedMatMul", "Gemm", "MatMul", "MatMulNBits"},
    "attention": frozenset({"Attention", "MultiHeadAttention", "QAttention", "QMultiHeadAttention"}),
    "softmax": frozenset({"QLinearSoftmax", "Softmax"}),
    "layernorm": frozenset(
        {"EmbedLayerNormalization", "LayerNormalization", "QEmbedLayerNormalization", "SkipLayerNormalization"}
    ),
    "gelu": frozenset({"BiasGelu", "Erf", "FastGelu", "Gelu", "QGelu", "QuickGelu", "Relu", "Tanh"}),
    "residual": frozenset({"Add", "QLinearAdd"}),
    "quantize": frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"}),
    "reorder": frozenset(
        {"Cast", "Concat", "Expand", "Reshape", "Split", "Squeeze", "Transpose", "Unsqueeze", "ReorderInput"}
    ),
    "embeddings": frozenset({"Gather", "QGather"}),
}
SMALL = 4  # elements: look-ups and reshapes of shapes, not of activations


class OnnxRuntimeProfiler:
    """A session of an ONNX file that profiles itself; its profile is written and read when the result is asked for."""

    def __init__(self, model: Path, settings: OnnxRuntimeSettings) -> None:
        """Raises BuildError when ONNX Runtime cannot load `model`, Unavailable when it is not installed."""
        self._model = model
        self._scratch = tempfile.TemporaryDirectory(prefix="qdq-profile-")
        options = settings.session_options(model=model)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._scratch.name) / "profile")
        self._session = open_session(model, options)
        self._inputs = SessionInputs(self._session)
        self._calls: list[float] = []

    def run(self, feeds: Feeds) -> None:
        """See `Profiler`."""
        wanted = self._inputs.of(feeds)
        begin = time.perf_counter()
        try:
            self._session.run(None, wanted)
        except failures() as error:
            raise BuildError(f"ONNX Runtime cannot run {self._model}: {reason(error)}") from error
        self._calls.append(1e3 * (time.perf_counter() - begin))

    def result(self) -> Profiled:
        """See `Profiler`."""
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        self._scratch.cleanup()
        return Profiled(_layers(events), statistics.median(self._calls[1:]))


def _layers(events: list[dict[str, Any]]) -> tuple[Layer, ...]:
    """One layer per node: the median over its calls without the first, which is the warm-up."""
    calls: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
            calls[event["name"].removesuffix(KERNEL)].append(event)
    return tuple(_layer(name, found) for name, found in calls.items() if len(found) > 1)


def _layer(name: str, calls: list[dict[str, Any]]) -> Layer:
    milliseconds = statistics.median(event["dur"] for event in calls[1:]) / 1e3
    arguments = calls[-1]["args"]
    operator = arguments["op_name"]
    inputs, outputs = (_tensors(arguments.get(key, [])) for key in ("input_type_shape", "output_type_shape"))
    group = next((group for group, operators in OPERATORS.items() if operator in operators), "other")
    largest = max((prod(shape) for _, shape in outputs), default=0)
    if group in ("reorder", "embeddings", "residual") and largest <= SMALL:
        group = "other"
    work = 0
    if group == "gemm":
        second = next((shape for _, shape in inputs[1:4] if len(shape) > 1), ())
        if len(second) > 2:
            group = "attention"
        else:
            work = prod(outputs[0][1]) * inputs[0][1][-1]
    return Layer(name, operator, group, operator in INT8_OPERATORS, milliseconds, work)


def _tensors(listed: list[dict[str, list[int]]]) -> list[tuple[str, list[int]]]:
    """(element type, shape) of every tensor: the profile writes ``[{"float": [2, 8]}, …]``."""
    return [next(iter(entry.items())) for entry in listed if entry]
