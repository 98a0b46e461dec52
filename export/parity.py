"""INT8 codes of every point compared on identical inputs: torch fake-quant, unoptimized ONNX Runtime, numpy arithmetic.

A difference here is a wrong scale, axis or rounding. A difference only in whole answers, which the pipeline's
`qdq.pipeline.stages.parity` compares, is a wrong connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.inventory import GraphIndex
from export.names import QUANTIZE
from export.reading import read_onnx
from export.unoptimized import Array, open_unoptimized, run
from qdq.errors import ParityError

FakeQuantize = Callable[[Array], Array]  # float values to their dequantized values, as torch's TensorQuantizer does

# One step: x / scale may round to the other side of a tie when a runtime multiplies by the reciprocal instead.
MAX_STEP = 1
MIN_EQUAL = 0.999
POINTS_PER_RUN = 16  # exposed tensors stay alive to the end of a run; 16 at batch 8 x 128 of BERT-base are about 100 MB


@dataclass(frozen=True)
class Agreement:
    """Codes of one point by two executions: share of equal ones, and the largest difference in steps."""

    equal: float
    max_step: int


@dataclass(frozen=True)
class PointResult:
    """One activation QuantizeLinear: its point, how many elements were compared, and with what outcome."""

    point: str
    elements: int
    numpy: Agreement  # ONNX Runtime against numpy
    torch: Agreement | None  # ONNX Runtime against torch's quantizer, when one was given


@dataclass(frozen=True)
class PointParity:
    """Result of `point_parity`, in graph order."""

    points: tuple[PointResult, ...]

    def as_json(self) -> dict[str, Any]:
        """Counts and the worst of each statistic, then every point."""
        found = [a for result in self.points for a in (result.numpy, result.torch) if a is not None]
        return {
            "elements": sum(result.elements for result in self.points),
            "max_step": max((agreement.max_step for agreement in found), default=0),
            "min_equal": min((agreement.equal for agreement in found), default=1.0),
            "points": [asdict(result) for result in self.points],
        }


def quantized_codes(x: Array, scale: Array, zero_point: Array) -> Array:
    """Compute ``saturate(round_half_even(x / scale) + zero_point)``, as ONNX defines QuantizeLinear, per tensor.

    `x` float32 of any shape; the codes have the dtype of `zero_point`.
    """
    limits = np.iinfo(zero_point.dtype)
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and saturates
        rounded = np.rint(x / scale)
    codes: Array = np.clip(rounded + float(zero_point), limits.min, limits.max).astype(zero_point.dtype)
    return codes


def point_parity(
    model_path: Path,
    feeds: Mapping[str, Array],
    quantize: Mapping[str, FakeQuantize] | None = None,
    points_per_run: int = POINTS_PER_RUN,
) -> PointParity:
    """Compare the codes of every activation point on the very inputs ONNX Runtime gave it.

    Args:
        model_path: a QDQ graph; external data beside it.
        feeds: one batch, input name to int64 [B, S] (or [B, N, S]).
        quantize: point name -> torch's fake-quantizer of that point; None compares with numpy only.
        points_per_run: how many points are exposed at a time, which bounds memory.

    Raises ParityError naming every point beyond one step or below 99.9 % equal codes, a point whose input holds NaN,
    or one that `quantize` lacks.
    """
    model = read_onnx(model_path, ParityError)
    points = _activation_points(model, model_path.parent)
    results: dict[str, PointResult] = {}
    # Backwards, so that what lies behind the last point of a run can be cut off for good.
    for end in range(len(points), 0, -points_per_run):
        chunk = points[max(0, end - points_per_run) : end]
        for point, x, codes in _exposed(model, chunk, feeds, model_path.parent):
            results[point.node] = _compare_point(point, x, codes, quantize)
    parity = PointParity(tuple(results[point.node] for point in points))
    _raise_if_apart(parity)
    return parity


@dataclass(frozen=True)
class _Point:
    name: str  # as in placement.json
    node: str
    position: int  # in the graph's node list
    source: str  # tensor it quantizes
    codes: str  # tensor it makes
    scale: Array
    zero_point: Array


def _activation_points(model: onnx.ModelProto, folder: Path) -> list[_Point]:
    index = GraphIndex(model.graph)
    points = []
    for position, node in enumerate(model.graph.node):
        if node.op_type == QUANTIZE and not index.is_constant(node.input[0]):
            scale, zero = (onnx.numpy_helper.to_array(index.initializers[name], str(folder)) for name in node.input[1:])
            name = node.name.rpartition(".")[0]
            points.append(_Point(name, node.name, position, node.input[0], node.output[0], scale, zero))
    return points


def _exposed(
    model: onnx.ModelProto, chunk: Sequence[_Point], feeds: Mapping[str, Array], folder: Path
) -> Iterator[tuple[_Point, Array, Array]]:
    """Inputs and codes of some points from one run; cuts `model` behind the last of them."""
    del model.graph.node[chunk[-1].position + 1 :]
    del model.graph.output[:]
    names = list(dict.fromkeys(name for point in chunk for name in (point.source, point.codes)))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    values = dict(zip(names, run(open_unoptimized(model.SerializeToString(), folder), feeds, names), strict=True))
    for point in chunk:
        yield point, values[point.source], values[point.codes]


def _compare_point(point: _Point, x: Array, codes: Array, quantize: Mapping[str, FakeQuantize] | None) -> PointResult:
    if np.isnan(x).any():
        raise ParityError(f"{point.name}: its input holds NaN; check the checkpoint's weights")
    expected = quantized_codes(x, point.scale, point.zero_point)
    torch = None
    if quantize is not None:
        if point.name not in quantize:
            raise ParityError(f"{point.name}: in the graph but not in the module; export this module again")
        steps = np.rint(quantize[point.name](x) / point.scale) + float(point.zero_point)
        torch = _agreement(codes, steps)
    return PointResult(point.name, x.size, _agreement(codes, expected), torch)


def _agreement(left: Array, right: Array) -> Agreement:
    steps = np.abs(left.astype(np.int64) - right.astype(np.int64))
    return Agreement(float(np.mean(steps == 0)) if steps.size else 1.0, int(steps.max(initial=0)))


def _raise_if_apart(parity: PointParity) -> None:
    apart = []
    for result in parity.points:
        for other, agreement in (("numpy", result.numpy), ("torch", result.torch)):
            if agreement is not None and (agreement.max_step > MAX_STEP or agreement.equal < MIN_EQUAL):
                share = f"{agreement.equal:.3%} of {result.elements} codes equal, {agreement.max_step} step(s) apart"
                apart.append(f"{result.point}: ONNX Runtime and {other} have {share}")
    if apart:
        listed = "\n".join(f"- {line}" for line in apart)
        raise ParityError(
            f"{len(apart)} point(s) differ on identical inputs (at most {MAX_STEP} step and at least {MIN_EQUAL:.1%} "
            f"equal are expected); the graph is not the calibrated module's, export again:\n{listed}"
        )
