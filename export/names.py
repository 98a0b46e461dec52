"""The one place for op names, domains and the names of the canonical graph, which lowering keeps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from onnx import NodeProto

QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"
PAIR = (QUANTIZE, DEQUANTIZE)
OPSET = 20  # LayerNormalization and Gelu are single ops; FP16 scales are legal; ONNX Runtime loads every graph of ours
IR_VERSION = 10  # newest one all our runtimes read; onnx's own default is newer

SCALE = ".scale"
ZERO_POINT = ".zero_point"
CODES = ".codes"  # INT8 weight initializer

ENCODER_BLOCK = re.compile(r"(^|\.)(encoder\.layer|transformer\.layer|encoder\.albert_layer_groups)\.\d+\.")


def in_encoder(name: str) -> bool:
    """Return whether a node name belongs to an encoder block (not embeddings, pooler or task head)."""
    return ENCODER_BLOCK.search(name) is not None


# Several linears that read one tensor become one product; its name says of which: ….self.query_and_key_and_value.MatMul
TOGETHER = "_and_"


def together(names: Sequence[str]) -> str | None:
    """Name for one node in place of several: ``a.query.MatMul`` and ``a.key.MatMul`` make ``a.query_and_key.MatMul``.

    None when they differ in more than one part of their names.
    """
    parts = [name.split(".") for name in names]
    differing = [place for place, same in enumerate(zip(*parts, strict=False)) if len(set(same)) > 1]
    if len(differing) != 1 or len({len(part) for part in parts}) > 1:
        return None
    place = differing[0]
    return ".".join((*parts[0][:place], TOGETHER.join(part[place] for part in parts), *parts[0][place + 1 :]))


def one_by_one(name: str) -> tuple[str, ...]:
    """Names of the nodes that `together` made one of; `name` alone when it is a node of its own."""
    parts = name.split(".")
    place = next((place for place, part in enumerate(parts) if TOGETHER in part), None)
    if place is None:
        return (name,)
    return tuple(".".join((*parts[:place], own, *parts[place + 1 :])) for own in parts[place].split(TOGETHER))


# Point attribute -> name pattern of the nodes that consume the point, below its module, and the operand it is. ALBERT
# calls one module once per layer: its nodes are numbered on, two BMMs a call.
CONSUMERS: Mapping[str, tuple[str, int]] = {
    "input_quantizer": (r"(MatMul|Gemm)(_\d+)?", 0),
    "weight_quantizer": (r"(MatMul|Gemm)(_\d+)?", 1),
    "matmul_q_input_quantizer": (r"MatMul(_\d*[02468])?", 0),
    "matmul_k_input_quantizer": (r"MatMul(_\d*[02468])?", 1),
    "matmul_a_input_quantizer": (r"MatMul_\d*[13579]", 0),
    "matmul_v_input_quantizer": (r"MatMul_\d*[13579]", 1),
    "add_local_input_quantizer": (r"Add(_\d+)?", 0),  # ALBERT's first Add is the attention mask's
    "add_residual_input_quantizer": (r"Add(_\d+)?", 1),
}


def consumers(nodes: Iterable[NodeProto], point: str) -> tuple[tuple[NodeProto, int], ...]:
    """Find the (node, operand) pairs that `point`, named as in placement.json, quantizes; in graph order.

    The points of linears that are computed together all name their one product.
    """
    module, _, attribute = point.rpartition(".")
    pattern, operand = CONSUMERS.get(attribute, ("", 0))
    name = re.compile(rf"{re.escape(module)}\.({pattern})")
    return tuple((node, operand) for node in nodes if any(map(name.fullmatch, one_by_one(node.name))))
