"""Attention as ONNX Runtime's MultiHeadAttention, with the padding mask inside the key so that its flash kernel runs.

The CPU kernel of MultiHeadAttention keeps a tile of scores in the L2 cache (flash attention), but only when it gets no
mask; with one it writes all scores to memory, as the separate operators do
(onnxruntime/contrib_ops/cpu/bert/multihead_attention.cc). So the mask becomes arithmetic: every head gets one more
dimension that is 1 in the query and the mask's value in the key, and q·k + 1·mask is what the graph adds anyway. Both
cost nothing extra: the 1 is a bias of the query's linear, and the mask value comes out of the key's INT8 linear itself,
from one more column of codes (0 for a token, -127 for padding) with a weight and a scale that make it exact.

Attention quantizers end here: the flash kernel multiplies floats and is faster than INT8 scores through memory
(docs/performance.md has the figures).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qdq.base.packing import CROP, PACKING, PADS, REAL_SLOTS, SPREAD

DOMAIN = "com.microsoft"
LINEAR = "MatMulIntegerToFloat"
TO_HEADS, KEY_TO_HEADS = (0, 2, 1, 3), (0, 2, 3, 1)
MASK_OPERATORS = ("Cast", "Equal", "Mul", "Not", "Sub", "Unsqueeze", "Where")
LARGEST = 127  # code and weight that carry the mask


class _NotAttentionError(Exception):
    """Raised with the reason that a Softmax is left alone."""


@dataclass
class _Block:
    """One attention block of the graph, found around its Softmax; the linears are fused ones."""

    scores: Any
    context: Any
    query: Any
    key: Any
    operands: tuple[Any, Any, Any]  # tensors [B, S, H·D] that query, key and value are read from
    mask: Any
    output: Any  # tensor [B, S, H·D]
    heads: int = 0
    dropped: list[str] = field(default_factory=list)


def fuse_attention(graph: Any, declined: list[tuple[str, str]]) -> tuple[int, list[str]]:
    """Fuse every attention block of `graph` in place; (how many, names of the quantizers dropped)."""
    done = 0
    dropped: list[str] = []
    masks: dict[tuple[str, bool], Any] = {}
    for softmax in [node for node in graph.nodes if node.op == "Softmax"]:
        try:
            block = _find(graph, softmax)
            packed = _is_spread(block.operands[1])
            if (block.mask.name, packed) not in masks:
                masks[block.mask.name, packed] = _mask_codes(graph, block.mask, packed)
            codes, low = masks[block.mask.name, packed]
        except _NotAttentionError as reason:
            declined.append((softmax.name, str(reason)))
            continue
        _widen(block.query, block.heads, scale=1.0, bias=1.0)  # one more output per head that is 1
        _extend_key(graph, block, codes, low)
        done += 1
        dropped += block.dropped
        _replace(graph, block)
    return done, dropped


def _find(graph: Any, softmax: Any) -> _Block:
    """Return the attention block around `softmax`. Raises _NotAttentionError naming what does not fit."""
    # Upwards: the mask, and the product of query and key.
    add = _producer(softmax.inputs[0], "Add", "a mask is not added in front of it")
    product = [tensor for tensor in add.inputs if tensor.inputs and tensor.inputs[0].op == "MatMul"]
    if len(product) != 1 or softmax.attrs.get("axis", -1) not in (-1, 3):
        raise _NotAttentionError("it is not the softmax of one product and a mask")
    scores, mask = product[0].inputs[0], next(tensor for tensor in add.inputs if tensor is not product[0])
    # Downwards: the probabilities, quantized or not, weigh the values.
    dropped: list[str] = []
    weights = softmax.outputs[0]
    while (reader := _only_reader(graph, weights)).op in ("QuantizeLinear", "DequantizeLinear"):
        dropped += [reader.name] if reader.op == "QuantizeLinear" else []
        weights = reader.outputs[0]
    if reader.op != "MatMul" or reader.inputs[0] is not weights:
        raise _NotAttentionError("what it weighs is not multiplied from the right")
    # All three operands come from linears, split into the same heads.
    query, shape = _heads(scores.inputs[0], TO_HEADS, dropped)
    key, key_shape = _heads(scores.inputs[1], KEY_TO_HEADS, dropped)
    value, value_shape = _heads(reader.inputs[1], TO_HEADS, dropped)
    if not shape == key_shape == value_shape:
        raise _NotAttentionError("query, key and value are split into different heads")
    # The heads are merged again, and nobody else reads what the fused operator will not compute.
    transpose = _only_reader(graph, reader.outputs[0])
    if transpose.op != "Transpose" or tuple(transpose.attrs["perm"]) != TO_HEADS:
        raise _NotAttentionError("its heads are not merged again")
    merge = _only_reader(graph, transpose.outputs[0])
    if merge.op != "Reshape" or merge.inputs[1].values.size != 3:
        raise _NotAttentionError("its heads are not merged again")
    linears = _linear(query), _linear(key)
    return _Block(scores, reader, *linears, (query, key, value), mask, merge.outputs[0], shape[0], dropped)


def _is_spread(tensor: Any) -> bool:
    """True for packed tokens that are spread out for attention."""
    return bool(tensor.inputs) and tensor.inputs[0].name.startswith(SPREAD)


def _linear(tensor: Any) -> Any:
    """The INT8 linear that makes query or key, packed or not, for this block alone."""
    while True:
        if len(tensor.outputs) != 1:
            raise _NotAttentionError("query or key is also read elsewhere")
        if not tensor.inputs or not tensor.inputs[0].name.startswith(PACKING):
            return _producer(tensor, LINEAR, "query or key is no INT8 linear")
        tensor = tensor.inputs[0].inputs[0]


def _heads(tensor: Any, wanted: tuple[int, ...], dropped: list[str]) -> tuple[Any, tuple[int, int]]:
    """The [B, S, H·D] tensor behind quantizers, transposes and one reshape, and (heads, head size)."""
    order = (0, 1, 2, 3)
    while tensor.inputs and tensor.inputs[0].op in ("Transpose", "QuantizeLinear", "DequantizeLinear"):
        node = tensor.inputs[0]
        if node.op == "Transpose":
            order = tuple(node.attrs["perm"][axis] for axis in order)
        elif node.op == "QuantizeLinear":
            dropped.append(node.name)
        tensor = node.inputs[0]
    reshape = _producer(tensor, "Reshape", "its operands are not split into heads")
    shape = getattr(reshape.inputs[1], "values", np.zeros(0))
    if order != wanted or shape.size != 4 or min(shape[2:]) < 1:
        raise _NotAttentionError("its operands are not split into heads")
    return reshape.inputs[0], (int(shape[2]), int(shape[3]))


def _producer(tensor: Any, op: str, otherwise: str) -> Any:
    if not tensor.inputs or tensor.inputs[0].op != op:
        raise _NotAttentionError(otherwise)
    return tensor.inputs[0]


def _only_reader(graph: Any, tensor: Any) -> Any:
    if len(tensor.outputs) != 1 or any(tensor is output for output in graph.outputs):
        raise _NotAttentionError("an intermediate result is also read elsewhere")
    return tensor.outputs[0]


def _mask_codes(graph: Any, mask: Any, packed: bool) -> tuple[Any, float]:
    """(u8 codes [B, S, 1] of the additive mask, its value for padding); the mask must follow from a 0/1 input alone.

    With `packed` tokens the codes are [1, T, 1].
    """
    import onnx_graphsurgeon as gs

    low = _padding_value(graph, mask)
    scale = gs.Constant(f"{mask.name}.scale", np.array(-low / LARGEST, np.float32))
    zero = gs.Constant(f"{mask.name}.zero_point", np.array(128, np.uint8))
    squeezed, turned, codes = (gs.Variable(f"{mask.name}.{part}") for part in ("squeezed", "turned", "codes"))
    axes = gs.Constant(f"{mask.name}.axes", np.array([1]))
    if packed:
        _pack_mask(graph, mask, turned, low)
    else:
        graph.nodes.append(gs.Node("Squeeze", squeezed.name, {}, [mask, axes], [squeezed]))
        graph.nodes.append(gs.Node("Transpose", turned.name, {"perm": [0, 2, 1]}, [squeezed], [turned]))
    graph.nodes.append(gs.Node("QuantizeLinear", codes.name, {}, [turned, scale, zero], [codes]))
    return codes, low


def _pack_mask(graph: Any, mask: Any, packed: Any, low: float) -> None:
    """Make `packed` [1, T, 1] of the additive mask; the tokens that stand for padding get its value for padding."""
    import onnx_graphsurgeon as gs

    tensors = graph.tensors()
    flat, real, padded = (gs.Variable(f"{packed.name}.{part}") for part in ("flat", "real", "padded"))
    vector = gs.Constant(f"{packed.name}.vector", np.array([-1]))
    column = gs.Constant(f"{packed.name}.column", np.array([1, -1, 1]))
    value = gs.Constant(f"{packed.name}.low", np.array(low, np.float32))
    graph.nodes += [
        gs.Node("Reshape", flat.name, {}, [mask, vector], [flat]),
        gs.Node("Gather", real.name, {"axis": 0}, [flat, tensors[REAL_SLOTS]], [real]),
        gs.Node("Pad", padded.name, {}, [real, tensors[PADS], value], [padded]),
        gs.Node("Reshape", packed.name, {}, [padded, column], [packed]),
    ]


def _padding_value(graph: Any, mask: Any) -> float:
    """Value added for padding, found by running the few operators that make the mask [B,1,1,S] of an input [B,S]."""
    import onnx_graphsurgeon as gs
    from onnx.reference import ReferenceEvaluator

    # Walk up from the mask, through operators of one input each, to the graph's input.
    nodes: list[Any] = []
    sources: list[Any] = [mask]
    while sources and sources[0].inputs and not sources[0].inputs[0].name.startswith(CROP):
        node = sources[0].inputs[0]
        if node.op not in MASK_OPERATORS or len(nodes) > 20:
            raise _NotAttentionError(f"its mask is made by {node.op}, not of a 0/1 input alone")
        nodes.insert(0, node)
        sources = [tensor for tensor in node.inputs if isinstance(tensor, gs.Variable) and not tensor.is_empty()]
        if len(sources) != 1:
            raise _NotAttentionError("its mask is made of more than one tensor")
    if not sources[0].inputs and not any(sources[0] is tensor for tensor in graph.inputs):
        raise _NotAttentionError("its mask is a constant")
    # Run just these on one padded and one real token.
    part = gs.Graph(nodes=nodes, inputs=sources, outputs=[mask], opset=graph.opset)
    model = gs.export_onnx(part, do_type_check=False)
    model.ir_version = 10
    try:
        (found,) = ReferenceEvaluator(model).run(None, {sources[0].name: np.array([[0, 1]], np.int64)})
    except (TypeError, ValueError, IndexError) as error:
        raise _NotAttentionError(f"its mask is not made of an input [B, S] ({error})") from error
    values = np.asarray(found)
    if values.shape != (1, 1, 1, 2) or values[..., 1] != 0 or not -1e30 < float(values[..., 0].item()) < 0:
        raise _NotAttentionError("its mask is not [B, 1, 1, S] with 0 for tokens and a finite value for padding")
    return float(values[..., 0].item())


def _extend_key(graph: Any, block: _Block, mask_codes: Any, low: float) -> None:
    """One more input column, the mask's codes, that only the one more output per head reads."""
    import onnx_graphsurgeon as gs

    linear = block.key
    activation_scale = float(linear.inputs[2].values.item())
    _widen(linear, block.heads, scale=-low / (LARGEST * LARGEST * activation_scale), bias=0.0)
    weight = linear.inputs[1]
    width = weight.values.shape[1] // block.heads
    row = np.zeros((1, block.heads, width), np.int8)
    row[..., -1] = LARGEST
    stacked = np.concatenate([weight.values, row.reshape(1, -1)])
    linear.inputs[1] = gs.Constant(f"{weight.name}.masked", stacked)
    codes = gs.Variable(f"{linear.name}.masked")
    graph.nodes.append(gs.Node("Concat", codes.name, {"axis": -1}, [linear.inputs[0], mask_codes], [codes]))
    linear.inputs[0] = codes


def _widen(linear: Any, heads: int, scale: float, bias: float) -> None:
    """Outputs [H, D] become [H, D + 1]: the new one has weight 0 and the given scale and bias."""
    import onnx_graphsurgeon as gs

    def widened(values: Any, fill: float, dtype: Any) -> Any:
        split = np.asarray(values).reshape(-1, heads, size)
        extra = np.full((split.shape[0], heads, 1), fill)
        return np.concatenate([split, extra], axis=-1).reshape(split.shape[0], -1).astype(dtype)

    # Weight codes, scales and biases each get the new output at the end of every head.
    codes, scales = linear.inputs[1].values, linear.inputs[3].values
    outputs = codes.shape[1]
    size = outputs // heads
    biases = linear.inputs[6].values if len(linear.inputs) > 6 else np.zeros(outputs, np.float32)
    stem = linear.name
    linear.inputs = [
        linear.inputs[0],
        gs.Constant(f"{stem}.codes", widened(codes, 0, np.int8)),
        linear.inputs[2],
        gs.Constant(f"{stem}.scales", widened(np.broadcast_to(scales, outputs), scale, np.float32)[0]),
        *linear.inputs[4:6],
        gs.Constant(f"{stem}.biases", widened(biases, bias, np.float32)[0]),
    ]


def _replace(graph: Any, block: _Block) -> None:
    import onnx_graphsurgeon as gs

    for tensor in (*block.operands, block.query.outputs[0], block.key.outputs[0]):
        tensor.shape = None
    block.output.inputs.clear()
    # Both names, so that the read-back finds either multiplication. The query carries 1/sqrt(head size) already.
    name = f"{block.scores.name}+{block.context.name}"
    attributes = {"num_heads": block.heads, "scale": 1.0}
    graph.nodes.append(gs.Node("MultiHeadAttention", name, attributes, list(block.operands), [block.output], DOMAIN))
