"""The one place for op names, domains and the names of the canonical graph, which lowering keeps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

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
    """Find the (node, operand) pairs that `point`, named as in placement.json, quantizes; in graph order."""
    module, _, attribute = point.rpartition(".")
    pattern, operand = CONSUMERS.get(attribute, ("", 0))
    prefix = f"{module}."
    return tuple(
        (node, operand)
        for node in nodes
        if node.name.startswith(prefix) and re.fullmatch(pattern, node.name.removeprefix(prefix))
    )
