"""From layers to kernels: matrix sizes and bytes of every layer at one batch and sequence.

What a layer reads and writes depends on its neighbours: an INT8 GEMM writes INT8 unless a float residual or a float
attention reads it, and a LayerNorm writes its result once per precision in which it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.estimate.workload import ATTENTIONS, GEMMS, Layer, LayerRecord, Op, merge_qkv, records
from qdq.errors import ConfigError

EMBEDDING_TABLES = 3  # word, position, token type
SCORE_KERNELS = 3  # unfused attention: scores, softmax, context


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
    return tuple(walk.op(index) for index in range(len(merged)))


@dataclass
class _Walk:
    """The network, and the number of features that flows at the current layer."""

    layers: Sequence[LayerRecord]
    batch: int
    sequence: int
    width: int = 0
    pooled: bool = False

    def __post_init__(self) -> None:
        self.width = next((layer.k for layer in self.layers if layer.kind in GEMMS), 0)

    @property
    def rows(self) -> int:
        """Rows of the activation matrix: tokens, or texts from the pooler on (it reads the first token alone)."""
        return self.batch if self.pooled else self.batch * self.sequence

    def op(self, index: int) -> Op:
        layer = self.layers[index]
        if layer.kind in GEMMS:
            return self._gemm(index)
        if layer.kind in ATTENTIONS:
            return self._attention(index)
        elements = self.rows * self.width
        if layer.kind == "embedding":
            return _move(layer, EMBEDDING_TABLES * elements * layer.element_bytes, self._launches(index))
        if layer.kind == "softmax":
            return _move(layer, 2 * elements * layer.element_bytes)
        if layer.kind == "gelu":
            return _move(layer, elements * (self._written(index - 1) + self._read_after(index)))
        if layer.kind == "residual":
            return _move(layer, 2 * elements * layer.element_bytes, self._launches(index))
        return self._layernorm(index, elements)

    def _gemm(self, index: int) -> Op:
        layer = self.layers[index]
        self.pooled = self.pooled or "pooler" in layer.name
        self.width = layer.n
        moved = self.rows * (layer.k * layer.element_bytes + layer.n * self._written(index))
        weights = layer.k * layer.n * layer.element_bytes
        return Op(layer.kind, layer.name, layer.precision, self.rows, layer.n, layer.k, 1, weights, moved)

    def _written(self, index: int) -> int:
        """Bytes of one element that layer `index` hands to the layer after it."""
        layer = self.layers[max(index, 0)]
        reader = self.layers[index + 1] if index + 1 < len(self.layers) else layer
        follows = reader.kind == "residual" or reader.kind in ATTENTIONS
        return max(layer.element_bytes, reader.element_bytes) if follows else layer.element_bytes

    def _read_after(self, index: int) -> int:
        """Bytes of one element in the precision of the next matrix product."""
        after = (other.element_bytes for other in self.layers[index + 1 :] if other.kind in GEMMS)
        return next(after, self.layers[index].element_bytes)

    def _attention(self, index: int) -> Op:
        layer = self.layers[index]
        size, products = layer.element_bytes, self.batch * layer.heads
        self.width = layer.heads * layer.head_size
        moved = self.rows * self.width * (3 * size + self._read_after(index))
        fused = layer.kind != "unfused_attention"
        if not fused:  # scores written and read by softmax, probabilities written and read by the second product
            moved += 4 * products * self.sequence**2 * max(size, 2)
        launches = 1 if fused else SCORE_KERNELS
        precision, sequence = layer.precision, self.sequence
        # The two products have the same size: [S,d] with [d,S] and [S,S] with [S,d].
        return Op(
            layer.kind, layer.name, precision, sequence, sequence, layer.head_size, 2 * products, 0, moved, launches
        )

    def _launches(self, index: int) -> int:
        """Residual adds and embeddings are computed by the LayerNorm after them; without one they are a kernel."""
        follows = index + 1 < len(self.layers) and self.layers[index + 1].kind == "layernorm"
        return 0 if follows else 1

    def _layernorm(self, index: int, elements: int) -> Op:
        layer, before = self.layers[index], self.layers[max(index - 1, 0)]
        read = 0 if before.kind in ("residual", "embedding") else layer.element_bytes
        residual = next((other.element_bytes for other in self.layers[index + 1 :] if other.kind == "residual"), 0)
        written = {self._read_after(index), residual} - {0}
        return _move(layer, elements * (read + sum(written)))


def _move(layer: LayerRecord, moved: int, launches: int = 1) -> Op:
    return Op(layer.kind, layer.name, layer.precision, activation_bytes=moved, launches=launches)
