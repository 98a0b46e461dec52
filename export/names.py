"""The one place for op names, domains and the name suffixes of the canonical graph."""

from __future__ import annotations

import re

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
