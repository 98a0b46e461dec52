"""The forms that an encoder can be written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from export.names import OPSET

Body = Literal["fp32", "fp16", "bf16"]
# One weight scale per output channel, one per tensor, or one with the channels' ratios as a Mul behind the product.
Weights = Literal["channel", "tensor", "ratio", "float"]
Projections = Literal["three", "merged", "split"]  # merged: [0, 0, 3, heads, size], one Transpose, three Gathers
Skip = Literal["shared", "own", "float"]  # shared: the skip connection reads the linears' Q


@dataclass(frozen=True)
class Form:
    """One way to write the encoder. The default is what the exporter writes, with all twenty points per layer."""

    layers: int = 2
    hidden: int = 32
    heads: int = 2
    inner: int = 64
    body: Body = "fp32"
    weights: Weights = "channel"
    inputs: bool = True  # Q/DQ on the linears' inputs
    codes: Literal["int8", "fp8", "int4"] = "int8"
    qkv: Projections = "three"
    attention: str = "qkva"  # the quantized operands of its two products
    skip: Skip = "shared"
    branch: bool = True  # Q/DQ on the other operand of the residual add
    smoothing: bool = False  # a Mul in front of the linears' Q, and its inverse on a shared skip
    gelu: Literal["op", "tanh", "erf", "relu"] = "op"
    norm: Literal["op", "chain"] = "op"
    mask: Literal["where", "scores", "product"] = "where"
    bias: Literal["add", "none"] = "add"
    late_scale: bool = False  # the scores are scaled behind the first product
    wide_scales: bool = False  # FP32 scales whatever the body
    positions: int = 64
    # Wiring of other families: token types or none, positions counted or summed over the mask (RoBERTa), embeddings of
    # another width behind a float linear (ALBERT, ELECTRA), a relative position bias on the scores (MPNet).
    types: bool = True
    summed: bool = False
    embedding: int | None = None
    relative: bool = False
    opset: int = OPSET
