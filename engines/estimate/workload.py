"""The work of a GPU: kernels, and the layers of a fusion map that they are predicted from.

Nothing here reads a graph. Kernels come from the compiler (`compiled`), or are predicted (`kernels`) from layers: those
of the fusion map of a lowered graph (the linter's records fit `Layer`), or of `encoder_layers` for published models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Protocol

from qdq.base.config import choice
from qdq.errors import ConfigError

GEMMS = ("int8_gemm", "float_gemm")
ATTENTIONS = ("int8_fused_attention", "float_fused_attention", "unfused_attention")
KINDS = (*GEMMS, *ATTENTIONS, "residual", "layernorm", "gelu", "softmax", "embedding")
ELEMENT_BYTES = {"int8": 1, "float16": 2, "bfloat16": 2, "float32": 4}
KIND_SPELLINGS = {"unfused": "unfused_attention", "residual_add": "residual", "layer_norm": "layernorm"}
SPELLINGS = {"i8": "int8", "fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32"}
FUSED_HEAD_LIMIT = 256  # FP16 fused attention: 16 <= head size <= 256, a multiple of 8


class Layer(Protocol):
    """One record of a fusion map, in execution order; what a GEMM computes in its epilogue is no record.

    Sizes that do not apply to a kind are 0 or None.
    """

    @property
    def kind(self) -> str: ...  # one of KINDS, or a key of KIND_SPELLINGS
    @property
    def name(self) -> str: ...
    @property
    def precision(self) -> str: ...  # int8, float16, bfloat16 or float32
    @property
    def k(self) -> int | None: ...  # gemm: input features
    @property
    def n(self) -> int | None: ...  # gemm: output features
    @property
    def heads(self) -> int | None: ...
    @property
    def head_size(self) -> int | None: ...
    @property
    def one_row(self) -> bool: ...  # works on one token of every text
    @property
    def narrow(self) -> bool: ...  # gemm: writes INT8


@dataclass(frozen=True)
class LayerRecord:
    """A `Layer` of our own."""

    kind: str
    name: str
    precision: str
    k: int = 0
    n: int = 0
    heads: int = 0
    head_size: int = 0
    one_row: bool = False  # of one token of every text; all tokens otherwise
    products: int = 1  # gemm: nodes of the graph that run as one kernel, side by side
    narrow: bool = False  # INT8 gemm: writes INT8, which takes one scale per tensor and no bias before the Q

    @property
    def element_bytes(self) -> int:
        """Bytes of one element in this layer's precision."""
        return ELEMENT_BYTES[self.precision]


@dataclass(frozen=True)
class Op:
    """Work of one kernel on the device: `count` products of [m,k] with [k,n], and memory traffic in bytes.

    Kinds are GEMMS, ATTENTIONS, and words for kernels that only move memory, which have m = n = k = 0.
    """

    kind: str
    name: str
    precision: str
    m: int = 0
    n: int = 0
    k: int = 0
    count: int = 1
    weight_bytes: int = 0
    activation_bytes: int = 0
    sharing: int = 1  # kernels that read parts of one tensor, and share the L2 that holds the last of it

    @property
    def multiplies(self) -> bool:
        """True for a kernel whose work are matrix products."""
        return self.kind in (*GEMMS, *ATTENTIONS)

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.m * self.n * self.k * self.count


@dataclass(frozen=True)
class Encoder:
    """Sizes of a BERT-shaped encoder."""

    layers: int
    hidden: int
    heads: int
    intermediate: int


ENCODERS = {"bert-base": Encoder(12, 768, 12, 3072), "bert-large": Encoder(24, 1024, 16, 4096)}


def encoder_layers(encoder: Encoder, precision: str, *, whole: bool = True) -> tuple[LayerRecord, ...]:
    """The layers of `encoder` as the published runtimes have them for one `precision`: in INT8, all tensors are INT8.

    `whole` adds the embedding and a SQuAD head, which demo/BERT times and FasterTransformer does not.
    """
    body = "float16" if precision == "int8" else precision
    layers = [LayerRecord("embedding", "embeddings", body), LayerRecord("layernorm", "embeddings.norm", body)]
    layers = layers if whole else []
    for index in range(encoder.layers):
        layers += _encoder_layer(encoder, precision, body, f"encoder.layer.{index}")
    if whole:
        layers.append(LayerRecord("float_gemm", "qa_outputs", body, k=encoder.hidden, n=2))
    return tuple(layers)


def _encoder_layer(encoder: Encoder, precision: str, body: str, prefix: str) -> list[LayerRecord]:
    hidden, wide = encoder.hidden, encoder.intermediate
    attention = {"int8": "int8_fused_attention", "float32": "unfused_attention"}.get(precision, "float_fused_attention")

    def gemm(name: str, k: int, n: int) -> LayerRecord:
        int8 = precision == "int8"
        return LayerRecord("int8_gemm" if int8 else "float_gemm", f"{prefix}.{name}", precision, k, n, narrow=int8)

    return [
        gemm("attention.qkv", hidden, 3 * hidden),
        LayerRecord(
            attention, f"{prefix}.attention", precision, heads=encoder.heads, head_size=hidden // encoder.heads
        ),
        gemm("attention.output", hidden, hidden),
        LayerRecord("residual", f"{prefix}.attention.residual", precision),
        LayerRecord("layernorm", f"{prefix}.attention.norm", body),
        gemm("intermediate", hidden, wide),
        gemm("output", wide, hidden),
        LayerRecord("residual", f"{prefix}.output.residual", precision),
        LayerRecord("layernorm", f"{prefix}.output.norm", body),
    ]


def records(layers: Iterable[Layer]) -> tuple[LayerRecord, ...]:
    """`layers` as our own records, the linter's spellings unified.

    Raises ConfigError for an unknown kind or precision, and for a GEMM or attention whose sizes are not known.
    """
    found = []
    for layer in layers:
        where = f"estimate: layer {layer.name}"
        kind = choice(KIND_SPELLINGS.get(layer.kind, layer.kind), KINDS, f"{where}: kind")
        precision = SPELLINGS.get(layer.precision.lower(), layer.precision.lower())
        choice(precision, ELEMENT_BYTES, f"{where}: precision")
        # Sizes that the kernels of a kind cannot be counted without.
        if kind in GEMMS and not (layer.k and layer.n):
            raise ConfigError(f"{where}: k and n are not known; give the graph's weight a fixed shape")
        if kind in ATTENTIONS and not (layer.heads and layer.head_size):
            raise ConfigError(
                f"{where}: heads and head size are not known; give the graph's head dimensions fixed sizes"
            )
        sizes = layer.k or 0, layer.n or 0, layer.heads or 0, layer.head_size or 0
        found.append(LayerRecord(kind, layer.name, precision, *sizes, layer.one_row, narrow=layer.narrow))
    return tuple(found)


def in_precision(layer: LayerRecord, precision: str) -> LayerRecord:
    """The same layer in float16, bfloat16 or float32, fused as TensorRT fuses that precision."""
    kind = "float_gemm" if layer.kind in GEMMS else layer.kind
    if layer.kind in ATTENTIONS:
        # Without Q/DQ nothing is left to break the FP16 fusion but the head size; FP32 has no fused kernel.
        fits = precision != "float32" and 16 <= layer.head_size <= FUSED_HEAD_LIMIT and layer.head_size % 8 == 0
        kind = "float_fused_attention" if fits else "unfused_attention"
    return replace(layer, kind=kind, precision=precision, narrow=False)


def merge_qkv(layers: Sequence[LayerRecord]) -> tuple[LayerRecord, ...]:
    """Join the query, key and value GEMMs right before an attention into one where all three agree.

    TensorRT runs matrix products of one input side by side; it cannot when one of them has another precision.
    """
    merged: list[LayerRecord] = []
    for layer in layers:
        if layer.kind in ATTENTIONS and len(merged) >= 3:
            last = merged[-3:]
            if all(gemm.kind in GEMMS and replace(gemm, name=last[0].name) == last[0] for gemm in last):
                name = shared_name([gemm.name for gemm in last])
                merged[-3:] = [replace(last[0], name=name, n=3 * last[0].n, products=3)]
        merged.append(layer)
    return tuple(merged)


def shared_name(names: Sequence[str]) -> str:
    """encoder.layer.0.attention.self.qkv for three projections whose names begin alike."""
    columns = zip(*(name.split(".") for name in names), strict=False)
    return ".".join([column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)] + ["qkv"])
