"""Per-layer times of an OpenVINO engine, from its performance counters and its compiled graph."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from engines.interface import feeds_for
from engines.openvino.build import OpenVINOSettings, open_core, reason
from engines.openvino.packing import is_packed, take_out_packing
from engines.openvino.precision import INT8_TYPES, information, operand_types, origins, weight_origins
from engines.openvino.reading import read_network
from engines.pieces import MASK, filled
from engines.profile.layers import Layer, Profiled
from qdq.base.types import Feeds
from qdq.errors import BuildError

REORDERS = frozenset({"Broadcast", "Concatenation", "Convert", "Reorder", "Reshape", "Split", "Transpose"})
NORMALIZATION = frozenset({"LayerNorm", "LayerNormalization", "MVN", "RMSNorm"})
NO_KERNEL = ("undef", "unknown")  # fused into another primitive, or a reshape in place
ACTIVATIONS = frozenset({"Erf", "Gelu", "Relu", "Swish", "Tanh"})


class OpenVINOProfiler:
    """An IR or ONNX file compiled with performance counters."""

    def __init__(self, model: Path, settings: OpenVINOSettings) -> None:
        """Raises BuildError when OpenVINO cannot load `model`, Unavailable when it is not installed."""
        core = open_core()
        try:
            self._network = read_network(core, model, settings.sums).model
            if settings.shape is not None:
                self._network.reshape({port.get_any_name(): list(settings.shape) for port in self._network.inputs})
                if is_packed(self._network):  # as the runner has it for batches of this shape
                    take_out_packing(self._network, settings.shape)
            self._compiled = core.compile_model(self._network, "CPU", {**settings.properties(), "PERF_COUNT": True})
        except RuntimeError as error:
            raise BuildError(f"OpenVINO cannot load {model}: {reason(error)}; build it again") from error
        self._model = model
        self._ranks = {port.get_any_name(): len(port.get_partial_shape()) for port in self._network.inputs}
        self._request = self._compiled.create_infer_request()
        self._times: dict[str, list[float]] = defaultdict(list)
        self._kinds: dict[str, str] = {}
        self._kernels: set[str] = set()  # the counters have whole microseconds: a small kernel may read 0
        self._calls: list[float] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._real = 1.0  # share of real tokens

    def run(self, feeds: Feeds) -> None:
        """See `Profiler`."""
        wanted = feeds_for(self._ranks, feeds)
        begin = time.perf_counter()
        try:
            self._request.infer(wanted)
        except RuntimeError as error:
            raise BuildError(f"OpenVINO cannot run {self._model}: {reason(error)}") from error
        elapsed = 1e3 * (time.perf_counter() - begin)
        if not self._shapes:
            self._shapes = {name: array.shape for name, array in wanted.items()}
            self._real = filled(wanted[MASK]) if MASK in wanted else 1.0
            return
        self._calls.append(elapsed)
        for entry in self._request.profiling_info:
            self._times[entry.node_name].append(1e3 * entry.real_time.total_seconds())
            self._kinds[entry.node_name] = entry.node_type
            if not entry.exec_type.startswith(NO_KERNEL):
                self._kernels.add(entry.node_name)

    def result(self) -> Profiled:
        """See `Profiler`."""
        nodes = {node.get_friendly_name(): node for node in self._compiled.get_runtime_model().get_ordered_ops()}
        operations = _Operations(self._network, self._shapes, self._real)
        medians = {name: statistics.median(values) for name, values in self._times.items()}
        layers = (
            _layer(name, self._kinds[name], ms, nodes.get(name), operations)
            for name, ms in medians.items()
            if ms or name in self._kernels
        )
        return Profiled(tuple(layers), statistics.median(self._calls))


class _Operations:
    """The operations of the network before OpenVINO compiled it: their types, and what each multiplies.

    In a packed network linears over tokens multiply the share `real` of all tokens, attention counts as padded.
    """

    def __init__(self, network: Any, shapes: Mapping[str, tuple[int, ...]], real: float) -> None:
        self.types = {op.get_friendly_name(): str(op.get_type_name()) for op in network.get_ordered_ops()}
        fixed = network.clone()
        fixed.reshape({port.get_any_name(): list(shapes[port.get_any_name()]) for port in fixed.inputs})
        if packed := is_packed(fixed):  # its sizes follow from the mask: counted on every position
            take_out_packing(fixed, tuple(next(iter(shapes.values()))))
        self.multiply_adds: dict[str, int] = {}
        for op in fixed.get_ordered_ops():
            if op.get_type_name() == "MatMul":
                inner = op.input(0).get_partial_shape().to_shape()[-2 if op.get_attributes()["transpose_a"] else -1]
                ranks = tuple(len(op.input(place).get_partial_shape()) for place in (0, 1))
                share = real if packed and ranks == (3, 2) else 1.0
                sizes = op.output(0).get_partial_shape().to_shape()
                self.multiply_adds[op.get_friendly_name()] = round(prod(sizes) * inner * share)

    def known(self, names: Iterable[str]) -> list[str]:
        """Names as a primitive carries them, in the network's spelling; those that it does not know are left out.

        OpenVINO adds ``/DequantizationMultiply`` and the like to a name, or ``_original``.
        """
        found = []
        for name in names:
            while name and name.removesuffix("_original") not in self.types:
                name = name.rpartition("/")[0]
            if name:
                found.append(name.removesuffix("_original"))
        return found


def _layer(name: str, kind: str, milliseconds: float, node: Any, operations: _Operations) -> Layer:
    if node is None:
        return Layer(name, kind, "other", False, milliseconds)
    names = operations.known(origins(node))
    types = {operations.types[origin] for origin in names}
    group = _group(information(node, "layerType"), types, node)
    if group != "gemm":
        return Layer(name, kind, group, information(node, "runtimePrecision") in INT8_TYPES, milliseconds)
    carried = (*names, *operations.known(weight_origins(node)))
    work = next((operations.multiply_adds[one] for one in carried if one in operations.multiply_adds), 0)
    return Layer(name, kind, group, INT8_TYPES.issuperset(operand_types(node)), milliseconds, work)


def _group(layer_type: str, types: set[str], node: Any) -> str:
    """Group of a primitive by its type and by the operations it was fused from."""
    if layer_type == "FullyConnected":
        return "gemm"
    if layer_type in ("MatMul", "ScaledDotProductAttention") or {"MatMul", "Softmax"} <= types:
        return "attention"
    if layer_type in REORDERS and layer_type != "Convert":
        return "reorder"
    if layer_type == "Gather":
        return "embeddings" if "f" in _output_type(node) or _output_type(node) in INT8_TYPES else "other"
    if layer_type == "Softmax":
        return "softmax"
    if layer_type in NORMALIZATION or types & NORMALIZATION or _follows_normalization(node):
        return "layernorm"
    if layer_type == "FakeQuantize":
        return "quantize"
    if layer_type in ("Eltwise", "Subgraph", "Math"):
        return _elementwise(types, node)
    return "reorder" if layer_type == "Convert" and "f" in _output_type(node) else "other"


def _elementwise(types: set[str], node: Any) -> str:
    if types & ACTIVATIONS:
        return "gelu"
    if "Add" in types and len(_computed_inputs(node)) > 1 and "f" in _output_type(node):
        return "residual"
    return "quantize" if _output_type(node) in INT8_TYPES and "FakeQuantize" in types else "other"


def _follows_normalization(node: Any) -> bool:
    """True for the scale and shift of the normalization in front of it."""
    types = _computed_inputs(node)
    elementwise = information(node, "layerType") in ("Eltwise", "Subgraph") and len(types) == 1
    return elementwise and types[0] in NORMALIZATION


def _computed_inputs(node: Any) -> list[str]:
    """Types of the primitives whose results it reads, constants left out."""
    types = (information(value.get_node(), "layerType") for value in node.input_values())
    return [layer_type for layer_type in types if layer_type != "Const"]


def _output_type(node: Any) -> str:
    return information(node, "outputPrecisions").split(",")[0].lower()
