"""Kernels predicted from a fusion map: what the compiler builds of the same layers, in sizes and bytes.

The rules are those of TensorRT for RTX 1.7.1, whose kernels docs/estimate.md sets beside these:

- an INT8 GEMM writes floating point, because its bias and the scales of its channels are applied by the kernels behind
  it: one for the heads of query, key and value together when they are one product of the graph, else one for each; one
  for a GELU. A `narrow` GEMM, whose product is quantized before that, writes INT8;
- a float GEMM computes its GELU itself, and leaves query, key and value to three kernels;
- fused attention writes what the next GEMM reads; a float one leaves a transpose of it behind. Unfused, it is two
  products with a softmax between them;
- a residual add is computed by the LayerNorm behind it, whose result is written once per precision in which it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from engines.estimate.workload import ATTENTIONS, ELEMENT_BYTES, GEMMS, Layer, LayerRecord, Op, merge_qkv, records
from qdq.errors import ConfigError


def graph_ops(layers: Sequence[Layer], batch: int, sequence: int) -> tuple[Op, ...]:
    """Kernels of a network for `batch` texts of `sequence` tokens, in execution order.

    Raises ConfigError for an empty network, a batch or sequence below 1, or an unknown kind or precision.
    """
    if batch < 1 or sequence < 1:
        raise ConfigError(f"estimate: batch and sequence must be at least 1, found {batch} x {sequence}")
    if not layers:
        raise ConfigError("estimate: the network has no layer; pass the fusion map of a lowered graph")
    merged = merge_qkv(records(layers))
    walk = _Walk(merged, batch, sequence)
    return tuple(op for index in range(len(merged)) for op in walk.ops(index))


@dataclass
class _Walk:
    """The network, and the number of features that flows at the current layer."""

    layers: Sequence[LayerRecord]
    batch: int
    sequence: int
    width: int = 0

    def __post_init__(self) -> None:
        self.width = next((layer.k for layer in self.layers if layer.kind in GEMMS), 0)
        floats = (layer.precision for layer in self.layers if layer.precision != "int8")
        self.body = next(floats, "float16")  # what is not INT8

    def rows(self, layer: LayerRecord) -> int:
        """Rows of the activation matrix: tokens, or texts behind the choice of one token."""
        return self.batch if layer.one_row else self.batch * self.sequence

    @property
    def wide(self) -> int:
        """Bytes of an element that is not INT8."""
        return ELEMENT_BYTES[self.body]

    def ops(self, index: int) -> Iterator[Op]:
        """The kernels of layer `index`, and those that have to stand between it and the next one."""
        layer = self.layers[index]
        elements = self.rows(layer) * self.width
        if layer.kind in GEMMS:
            yield self._gemm(index)
            yield from self._behind_gemm(index)
        elif layer.kind in ATTENTIONS:
            yield from self._attention(index)
        elif layer.kind == "layernorm":
            yield from self._layernorm(index, elements)
        elif layer.kind in ("softmax", "gelu"):
            yield _move(layer, elements * (self._written(index - 1) + self._read_after(index)))
        elif not self._rides(index):
            yield _move(layer, 3 * elements * layer.element_bytes)

    def _gemm(self, index: int) -> Op:
        layer = self.layers[index]
        self.width, rows = layer.n, self.rows(layer)
        moved = rows * (layer.k * layer.element_bytes + layer.n * self._written(index))
        weights = layer.k * layer.n * layer.element_bytes
        return Op(layer.kind, layer.name, layer.precision, rows, layer.n, layer.k, 1, weights, moved)

    def _behind_gemm(self, index: int) -> Iterator[Op]:
        """Kernels for what a GEMM leaves undone: the heads of attention, a GELU, the bias outside the encoder."""
        layer, after = self.layers[index], self.layers[index + 1 : index + 4]
        kinds = [other.kind for other in after]
        elements = self.rows(layer) * layer.n
        if kinds and kinds[0] in ATTENTIONS and layer.products * layer.n >= 3 * after[0].heads * after[0].head_size:
            yield from self._heads(layer, after[0], elements * self._written(index))
        elif layer.precision == "int8" and kinds and kinds[0] in GEMMS and after[0].k == layer.n != layer.k:
            yield _move(layer, elements * (self._written(index) + after[0].element_bytes), "gelu")
        elif any(kind in ATTENTIONS for kind in kinds) and kinds[0] in (*GEMMS, *ATTENTIONS):
            # One of three projections that could not be put side by side.
            size = next(other for other in after if other.kind in ATTENTIONS).element_bytes
            yield _move(layer, elements * (self._written(index) + size), "transpose")
        elif all(kind in GEMMS for kind in kinds):  # nothing but the head is left
            yield _move(layer, 2 * elements * layer.element_bytes, "other")

    def _heads(self, layer: LayerRecord, attention: LayerRecord, read: int) -> Iterator[Op]:
        """Bias, quantization and transpose of query, key and value."""
        written = self.rows(layer) * layer.n * attention.element_bytes
        kernels = 1 if layer.precision == "int8" and layer.products == 1 else 3
        for _ in range(kernels):
            yield replace(_move(layer, (read + written) // kernels, "transpose"), sharing=kernels)

    def _written(self, index: int) -> int:
        """Bytes of one element that layer `index` hands to the layer after it."""
        layer = self.layers[max(index, 0)]
        wide = layer.kind == "int8_gemm" and not layer.narrow
        return self.wide if wide else layer.element_bytes

    def _read_after(self, index: int) -> int:
        """Bytes of one element in the precision of the next matrix product."""
        after = (other.element_bytes for other in self.layers[index + 1 :] if other.kind in GEMMS)
        return next(after, self.layers[index].element_bytes)

    def _attention(self, index: int) -> Iterator[Op]:
        layer, sequence = self.layers[index], self.sequence
        size, count = layer.element_bytes, self.batch * layer.heads
        self.width = layer.heads * layer.head_size
        written = self._read_after(index)
        elements, keys = self.rows(layer) * self.width, self.batch * sequence * self.width
        queries = 1 if layer.one_row else sequence
        # The two products have the same size: [S,d] with [d,S] and [S,S] with [S,d].
        shape = queries, sequence, layer.head_size
        if layer.kind != "unfused_attention" and not layer.one_row:
            moved = elements * (3 * size + written)
            yield Op(layer.kind, layer.name, layer.precision, *shape, 2 * count, 0, moved)
            if written < size:
                yield _move(layer, 2 * elements * written, "transpose")
            return
        kind = "int8_gemm" if layer.precision == "int8" else "float_gemm"
        scores = count * queries * sequence * max(size, 2)
        product = Op(kind, layer.name, layer.precision, *shape, count, 0, (elements + keys) * size + scores)
        yield from (product, _move(layer, 2 * scores, "softmax"), product)
        if written < size:
            yield _move(layer, elements * (size + written), "transpose")

    def _rides(self, index: int) -> bool:
        """Residual adds and embeddings are computed by the LayerNorm after them; without one they are a kernel."""
        return index + 1 < len(self.layers) and self.layers[index + 1].kind == "layernorm"

    def _layernorm(self, index: int, elements: int) -> Iterator[Op]:
        layer, before = self.layers[index], self.layers[max(index - 1, 0)]
        read = layer.element_bytes
        if before.kind == "residual":
            read = before.element_bytes + self._written(index - 2)
        # Embedding tables are gathered; the result goes to the next matrix product and to the next residual add.
        residual = next((other.element_bytes for other in self.layers[index + 1 :] if other.kind == "residual"), 0)
        written = {self._read_after(index), residual} - {0}
        moved = elements * (read + sum(written))
        if layer.one_row or not any(after.one_row for after in self.layers[index + 1 : index + 4]):
            yield _move(layer, moved)
            return
        # One token is chosen from the result: centred values go to a second kernel in FP32.
        yield _move(layer, elements * (read + 4))
        yield _move(layer, elements * (4 + sum(written)))


def _move(layer: LayerRecord, moved: int, kind: str = "") -> Op:
    return Op(kind or layer.kind, layer.name, layer.precision, activation_bytes=moved)
