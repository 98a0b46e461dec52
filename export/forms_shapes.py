"""Nodes of the torch functions that move elements or measure tensors, as torch's exporter writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from export.emitter import TYPES, Emitter, Form
from export.forms import argument, only, rank, result_of
from export.record import Call, Result, Size, Unrecorded


def _reshape(emitter: Emitter, call: Call) -> ir.Value:
    """To the result's shape, a constant where `export.tidy` can make it one; -1 stays where it stands for sizes."""
    asked = call.arguments[1] if isinstance(argument(call, 1, ""), tuple) else call.arguments[1:]
    shape = list(result_of(emitter, call).shape)
    if call.function != "flatten":
        shape = [-1 if isinstance(size, Size) and asked[axis] == -1 else size for axis, size in enumerate(shape)]
    return emitter.node("Reshape", emitter.value(call.arguments[0]), emitter.sizes(shape), allowzero=1)


def _transpose(emitter: Emitter, call: Call) -> ir.Value:
    order = list(range(rank(emitter, call)))
    one, other = call.arguments[1:]
    order[one], order[other] = order[other], order[one]
    return emitter.node("Transpose", emitter.value(call.arguments[0]), perm=order)


def _permute(emitter: Emitter, call: Call) -> ir.Value:
    order = call.arguments[1] if isinstance(call.arguments[1], tuple) else call.arguments[1:]
    return emitter.node("Transpose", emitter.value(call.arguments[0]), perm=[axis % len(order) for axis in order])


def _getitem(emitter: Emitter, call: Call) -> ir.Value:
    """Integers become Gather, ranges Slice, and all new axes one Unsqueeze."""
    index = call.arguments[1] if isinstance(call.arguments[1], tuple) else (call.arguments[1],)
    about = emitter.about(call.arguments[0])
    # One entry of the index after the other; `axis` is the place in what is left, `place` that in the result
    value, shape, axis, added, place = emitter.value(call.arguments[0]), list(about.shape), 0, [], 0
    for each in index:
        if each is None:
            added.append(place)
        elif type(each) is int:
            del shape[axis]
            value = emitter.node(
                "Gather",
                value,
                emitter.constant(np.array(each, np.int64)),
                axis=axis,
                like=Result(tuple(shape), about.dtype),
            )
            continue
        elif isinstance(each, slice) and each.step in (None, 1):
            value = _sliced(emitter, value, each, axis)
            axis += 1
        else:
            raise Unrecorded(f"{call.module} indexes with {each}")
        place += 1
    return emitter.node("Unsqueeze", value, emitter.integers(*added)) if added else value


def _sliced(emitter: Emitter, value: ir.Value, part: slice, axis: int) -> ir.Value:
    if part.start in (None, 0) and part.stop is None:
        return value
    axes = emitter.integers(axis)
    ends = emitter.size(np.iinfo(np.int64).max if part.stop is None else part.stop)
    return emitter.node("Slice", value, emitter.size(part.start or 0), ends, axes, emitter.integers(1))


def _unsqueeze(emitter: Emitter, call: Call) -> ir.Value:
    axis = argument(call, 1, "dim") % (rank(emitter, call) + 1)
    return emitter.node("Unsqueeze", emitter.value(call.arguments[0]), emitter.integers(axis))


def _squeeze(emitter: Emitter, call: Call) -> ir.Value:
    axis = argument(call, 1, "dim")
    if axis is None:
        raise Unrecorded(f"{call.module} squeezes without an axis")
    return emitter.node("Squeeze", emitter.value(call.arguments[0]), emitter.integers(axis))


def _split(emitter: Emitter, call: Call) -> tuple[ir.Value, ...]:
    axis = argument(call, 2, "dim", 0) % rank(emitter, call)
    node = ir.node(
        "Split",
        [emitter.value(call.arguments[0])],
        {"axis": axis, "num_outputs": len(call.results)},
        num_outputs=len(call.results),
    )
    return emitter.add(node)


def _expand(emitter: Emitter, call: Call) -> ir.Value:
    """To the sizes asked for; -1, "as it is", is 1 in ONNX, which keeps the larger of both."""
    value, shape = emitter.value(call.arguments[0]), result_of(emitter, call).shape
    if emitter.about(call.arguments[0]).shape == shape:
        return value
    asked = call.arguments[1] if isinstance(call.arguments[1], tuple) else call.arguments[1:]
    return emitter.node("Expand", value, emitter.sizes([1 if size == -1 else size for size in asked]))


def _gather(emitter: Emitter, call: Call) -> ir.Value:
    axis, index = argument(call, 1, "dim"), argument(call, 2, "index")
    return emitter.node("GatherElements", emitter.value(call.arguments[0]), emitter.value(index), axis=axis)


def _cumsum(emitter: Emitter, call: Call) -> ir.Value:
    """In the type of the result: torch sums small integers in INT64."""
    value, target = emitter.value(call.arguments[0]), TYPES[result_of(emitter, call).dtype]
    if value.dtype != target:
        value = emitter.node("Cast", value, to=target, like=result_of(emitter, call))
    axis = emitter.constant(np.array(argument(call, 1, "dim"), np.int64))
    return emitter.node("CumSum", value, axis, exclusive=0, reverse=0)


def _arange(emitter: Emitter, call: Call) -> ir.Value:
    if len(call.arguments) != 1 or result_of(emitter, call).dtype != torch.int64:
        raise Unrecorded(f"{call.module} calls arange with {len(call.arguments)} numbers")
    zero, one = (emitter.constant(np.array(number, np.int64)) for number in (0, 1))
    return emitter.node("Range", zero, emitter.scalar(call.arguments[0]), one)


def _full_like(emitter: Emitter, call: Call) -> ir.Value:
    like, number = call.arguments
    shape = emitter.node("Shape", emitter.value(like), start=0, like=Result((rank(emitter, call),), torch.int64))
    return emitter.node("Expand", emitter.value(number, like), shape)


def _reduced(op: str, **attributes: Any) -> Form:
    """A reduction over the dimensions given."""

    def form(emitter: Emitter, call: Call) -> ir.Value:
        only(call, dtype=None)
        axis = argument(call, 1, "dim")
        if axis is None:
            raise Unrecorded(f"{call.module} calls {call.function} over all dimensions")
        axes = emitter.integers(*(axis if isinstance(axis, tuple) else (axis,)))
        keep = int(argument(call, 2, "keepdim", False))
        return emitter.node(op, emitter.value(call.arguments[0]), axes, keepdims=keep, **attributes)

    return form


def _clamp(emitter: Emitter, call: Call) -> ir.Value:
    x, low = call.arguments[0], argument(call, 1, "min")
    if low is None or argument(call, 2, "max") is not None:
        raise Unrecorded(f"{call.module} clamps from above")
    return emitter.node("Clip", emitter.value(x), emitter.value(low, x))


def _normalize(emitter: Emitter, call: Call) -> ir.Value:
    """Divide by the Euclidean norm over `dim`, which is at least `eps`."""
    only(call, p=2.0, out=None)
    x, about = call.arguments[0], emitter.about(call.arguments[0])
    axis = argument(call, 2, "dim", 1)
    norms = list(about.shape)
    norms[axis] = 1
    like = Result(tuple(norms), about.dtype)
    norm = emitter.node(
        "ReduceL2", emitter.value(x), emitter.integers(axis), keepdims=1, noop_with_empty_axes=0, like=like
    )
    least = emitter.node("Clip", norm, emitter.value(float(argument(call, 3, "eps", 1e-12)), x), like=like)
    spread = emitter.node("Expand", least, emitter.sizes(about.shape), like=about)
    return emitter.node("Div", emitter.value(x), spread)


def _same(emitter: Emitter, call: Call) -> ir.Value:
    """A call that changes no value: dropout in eval mode, contiguous."""
    only(call, training=False)
    return emitter.value(call.arguments[0])


SHAPES: Mapping[str, Form] = {
    "view": _reshape,
    "reshape": _reshape,
    "flatten": _reshape,
    "transpose": _transpose,
    "permute": _permute,
    "getitem": _getitem,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "split": _split,
    "expand": _expand,
    "gather": _gather,
    "cumsum": _cumsum,
    "arange": _arange,
    "full_like": _full_like,
    "sum": _reduced("ReduceSum", noop_with_empty_axes=0),
    "amax": _reduced("ReduceMax"),
    "clamp": _clamp,
    "normalize": _normalize,
    "contiguous": _same,
    "dropout": _same,
}
