"""Largest magnitude of every float tensor of a graph on real data, which decides where FP16 is enough.

Two small reductions behind each tensor return its largest magnitude and whether it holds NaN, so one run per batch
measures every tensor and none of them has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.inventory import GraphIndex
from export.passes.element_types import element_types
from export.reading import read_onnx
from export.unoptimized import Array, open_unoptimized, run
from qdq.errors import PassError

ZERO = "range.zero"
KINDS = ("largest", "nan")  # the two reductions


def measure_ranges(
    model_path: Path,
    feeds: Iterable[Mapping[str, Array]],
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Measure the largest finite |x| of every float32 tensor computed from the graph's inputs, over all `feeds`.

    Infinity does not count: FP16 has it too, and graphs take the logarithm of 0 where a Where then discards it.

    Args:
        model_path: the canonical or the FP32 graph; external data beside it.
        feeds: batches, each input name to int64 [B, S] (or [B, N, S]), encoded as for calibration.
        progress: called with the number of batches done.

    Returns tensor name to largest magnitude, in graph order. Raises PassError when the graph cannot be read, when a
    tensor holds NaN already in FP32, and when there are no batches; Unavailable without ONNX Runtime.
    """
    model = read_onnx(model_path, PassError)
    names = _computed_floats(model)
    _append_reductions(model.graph, names)
    # One run per batch gives both reductions of every tensor, of which the largest ones are kept.
    session = open_unoptimized(model.SerializeToString(), model_path.parent)
    outputs = [f"range.{kind}.{name}" for kind in KINDS for name in names]
    largest = np.zeros(len(names))
    done = 0
    for done, feed in enumerate(feeds, 1):
        values = np.array(run(session, feed, outputs), dtype=np.float64)
        _raise_for_nan(names, values[len(names) :])
        largest = np.maximum(largest, values[: len(names)])
        if progress is not None:
            progress(done)
    if not done:
        raise PassError("no batches to measure ranges on; give calibration text")
    return dict(zip(names, largest.tolist(), strict=True))


def _computed_floats(model: onnx.ModelProto) -> list[str]:
    """Names of the float32 tensors that depend on an input, in graph order."""
    types = element_types(gs.import_onnx(model))
    index = GraphIndex(model.graph)
    produced = (name for node in model.graph.node for name in node.output)
    return [name for name in produced if types.get(name) == TensorProto.FLOAT and not index.is_constant(name)]


def _append_reductions(graph: onnx.GraphProto, names: list[str]) -> None:
    """Make the graph return the two reductions of every tensor instead of its own outputs."""
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), ZERO))
    del graph.output[:]
    for name in names:
        graph.node.extend(_reductions(name))
        for kind in KINDS:
            graph.output.append(helper.make_tensor_value_info(f"range.{kind}.{name}", TensorProto.FLOAT, []))


def _reductions(name: str) -> Iterator[NodeProto]:
    yield helper.make_node("Abs", [name], [f"range.abs.{name}"])
    yield helper.make_node("IsInf", [name], [f"range.infinite.{name}"])
    yield helper.make_node("Where", [f"range.infinite.{name}", ZERO, f"range.abs.{name}"], [f"range.finite.{name}"])
    yield helper.make_node("ReduceMax", [f"range.finite.{name}"], [f"range.largest.{name}"], keepdims=0)
    # ReduceMax skips NaN
    yield helper.make_node("IsNaN", [name], [f"range.is_nan.{name}"])
    yield helper.make_node("Cast", [f"range.is_nan.{name}"], [f"range.number.{name}"], to=TensorProto.FLOAT)
    yield helper.make_node("ReduceMax", [f"range.number.{name}"], [f"range.nan.{name}"], keepdims=0)


def _raise_for_nan(names: list[str], found: NDArray[np.float64]) -> None:
    wrong = [name for name, value in zip(names, found, strict=True) if value]
    if wrong:
        raise PassError(
            f"{len(wrong)} tensor(s) hold NaN already in FP32, the first is '{wrong[0]}'; check the checkpoint's "
            "weights"
        )
