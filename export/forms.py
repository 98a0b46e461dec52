"""Nodes of the torch functions that compute: linears, quantizers, sums; the same as torch's exporter writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from export.emitter import TYPES, Emitter, Form
from export.names import DEQUANTIZE, QUANTIZE
from export.record import Call, Result, Unrecorded

NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}  # a right operand that changes nothing


def argument(call: Call, place: int, name: str, default: Any = None) -> Any:
    """Return an argument that may be given by place or by name."""
    return call.arguments[place] if len(call.arguments) > place else call.keywords.get(name, default)


def only(call: Call, **expected: Any) -> None:
    """Raise Unrecorded where a keyword has another value than the one its form stands for."""
    for name, value in call.keywords.items():
        if name in expected and value != expected[name]:
            raise Unrecorded(f"{call.module} calls {call.function} with {name}={value}")


def rank(emitter: Emitter, call: Call) -> int:
    """Number of dimensions of the first argument."""
    return len(emitter.about(call.arguments[0]).shape)


def result_of(emitter: Emitter, call: Call) -> Result:
    """Shape and type of the first result."""
    return emitter.recording.tensors[call.results[0]]


def _linear(emitter: Emitter, call: Call) -> ir.Value:
    x, weight, bias = call.arguments[0], argument(call, 1, "weight"), argument(call, 2, "bias")
    value, matrix = emitter.value(x), emitter.value(weight)
    if rank(emitter, call) == 2 and bias is not None:
        return emitter.node("Gemm", value, matrix, emitter.value(bias), alpha=1.0, beta=1.0, transA=0, transB=1)
    rows, columns = emitter.about(weight).shape
    turned = emitter.node("Transpose", matrix, perm=[1, 0], like=Result((columns, rows), torch.float32))
    if bias is None:
        return emitter.node("MatMul", value, turned)
    product = emitter.node("MatMul", value, turned, like=result_of(emitter, call))
    return emitter.node("Add", product, emitter.value(bias))


def _pair(emitter: Emitter, call: Call) -> ir.Value:
    x, scale, zero, axis = call.arguments
    constants = emitter.value(scale), emitter.value(zero)
    about = emitter.about(x)
    codes = emitter.node(QUANTIZE, emitter.value(x), *constants, axis=axis, like=Result(about.shape, torch.int8))
    return emitter.node(DEQUANTIZE, codes, *constants, axis=axis)


def _unary(op: str) -> Form:
    return lambda emitter, call: emitter.node(op, emitter.value(call.arguments[0]))


def _binary(op: str) -> Form:
    def form(emitter: Emitter, call: Call) -> ir.Value:
        only(call, alpha=1, rounding_mode=None)
        left, right = call.arguments[0], argument(call, 1, "other")
        if type(right) in (int, float) and right == NEUTRAL.get(op) and result_of(emitter, call) == emitter.about(left):
            return emitter.value(left)
        return emitter.node(op, *_operands(emitter, left, right))

    return form


def _operands(emitter: Emitter, left: Any, right: Any) -> tuple[ir.Value, ir.Value]:
    """Both operands as values of one type: a number takes the other's, as torch's promotion does for the same kind."""
    for number, tensor in ((left, right), (right, left)):
        if isinstance(number, float) and not emitter.about(tensor).dtype.is_floating_point:
            raise Unrecorded(f"{emitter.module} mixes an integer tensor with {number}")
    one, other = emitter.value(left, right), emitter.value(right, left)
    return _promoted(emitter, one, other)


def _promoted(emitter: Emitter, left: ir.Value, right: ir.Value) -> tuple[ir.Value, ir.Value]:
    if left.dtype == right.dtype:
        return left, right
    order = (ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT)
    if left.dtype not in order or right.dtype not in order:
        raise Unrecorded(f"{emitter.module} mixes {left.dtype} with {right.dtype}")
    wide = max(left.dtype, right.dtype, key=order.index)
    left, right = (v if v.dtype == wide else emitter.node("Cast", v, to=wide) for v in (left, right))
    return left, right


def _reversed_sub(emitter: Emitter, call: Call) -> ir.Value:
    right, left = call.arguments
    return emitter.node("Sub", *_operands(emitter, left, right))


def _not_equal(emitter: Emitter, call: Call) -> ir.Value:
    equal = emitter.node("Equal", *_operands(emitter, *call.arguments), like=result_of(emitter, call))
    return emitter.node("Not", equal)


def _gelu(emitter: Emitter, call: Call) -> ir.Value:
    return emitter.node("Gelu", emitter.value(call.arguments[0]), approximate=argument(call, 1, "approximate", "none"))


def _layer_norm(emitter: Emitter, call: Call) -> ir.Value:
    x, shape = call.arguments[:2]
    weight, bias = argument(call, 2, "weight"), argument(call, 3, "bias")
    if weight is None:
        raise Unrecorded(f"{call.module}: layer_norm without a weight")
    values = [emitter.value(x), emitter.value(weight), *([] if bias is None else [emitter.value(bias)])]
    epsilon = float(np.float32(argument(call, 4, "eps", 1e-5)))
    return emitter.node("LayerNormalization", *values, axis=-len(shape), epsilon=epsilon, stash_type=1)


def _softmax(emitter: Emitter, call: Call) -> ir.Value:
    only(call, dtype=None)
    return emitter.node("Softmax", emitter.value(call.arguments[0]), axis=argument(call, 1, "dim"))


def _embedding(emitter: Emitter, call: Call) -> ir.Value:
    only(call, max_norm=None)
    rows, table = call.arguments[:2]
    return emitter.node("Gather", emitter.value(table), emitter.value(rows), axis=0)


def _cast(emitter: Emitter, call: Call, dtype: torch.dtype | None = None) -> ir.Value:
    given = dtype or next(
        (a for a in (*call.arguments[1:], *call.keywords.values()) if isinstance(a, torch.dtype)), None
    )
    value = emitter.value(call.arguments[0])
    target = result_of(emitter, call).dtype
    if given is None and target == emitter.about(call.arguments[0]).dtype:
        return value
    return emitter.node("Cast", value, to=TYPES[target])


def _type_as(emitter: Emitter, call: Call) -> ir.Value:
    emitter.module = ""  # torch's exporter leaves these without a module
    return _cast(emitter, call)


def _where(emitter: Emitter, call: Call) -> ir.Value:
    condition, yes, no = call.arguments
    result = np.dtype(str(result_of(emitter, call).dtype).removeprefix("torch."))
    values = [
        emitter.constant(np.array(v, result)) if isinstance(v, int | float) else emitter.value(v) for v in (yes, no)
    ]
    return emitter.node("Where", emitter.value(condition), *values)


ARITHMETIC: Mapping[str, Form] = {
    "linear": _linear,
    "quantize_pair": _pair,
    "matmul": _binary("MatMul"),
    "bmm": _binary("MatMul"),
    "add": _binary("Add"),
    "radd": _binary("Add"),
    "sub": _binary("Sub"),
    "rsub": _reversed_sub,
    "mul": _binary("Mul"),
    "rmul": _binary("Mul"),
    "div": _binary("Div"),
    "truediv": _binary("Div"),
    "eq": _binary("Equal"),
    "lt": _binary("Less"),
    "le": _binary("LessOrEqual"),
    "and": _binary("And"),
    "ne": _not_equal,
    "neg": _unary("Neg"),
    "abs": _unary("Abs"),
    "sqrt": _unary("Sqrt"),
    "tanh": _unary("Tanh"),
    "relu": _unary("Relu"),
    "sigmoid": _unary("Sigmoid"),
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "embedding": _embedding,
    "to": _cast,
    "type_as": _type_as,
    "bool": _cast,
    "long": _cast,
    "int": _cast,
    "float": _cast,
    "where": _where,
    "min": _binary("Min"),
    "log": _unary("Log"),
}
