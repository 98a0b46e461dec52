"""INT8 embedding tables: an Embedding whose rows carry one scale each, so that no data is needed to choose them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdq.inject.quantizer import TensorQuantizer, weight_amax
from qdq.inject.scale import scale_of


class QuantEmbedding(nn.Embedding):
    """`table` with a quantizer on its weight; shares the parameter.

    A row's scale is its largest magnitude over 127 (per-row symmetric INT8, as in FBGEMM's and PaddleSlim's embedding
    quantization). Outside an export only the rows that are looked up are rounded: the same values, without a pass over
    the whole vocabulary.
    """

    def __init__(self, table: nn.Embedding, weight: TensorQuantizer) -> None:
        super().__init__(1, 1, device="meta")  # the parameter comes from `table`
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.padding_idx = table.padding_idx
        self.weight = table.weight
        self._weight_quantizer = weight
        self.train(table.training)

    @property
    def effective_weight(self) -> Tensor:
        """The table that is quantized: [rows, hidden]."""
        return self.weight

    def forward(self, input: Tensor) -> Tensor:
        """int64 row numbers of any shape to [..., hidden]."""
        point = self._weight_quantizer
        if point.is_constant or torch.compiler.is_exporting():
            return nn.functional.embedding(input, point(self.weight), self.padding_idx)
        rows = nn.functional.embedding(input, self.weight, self.padding_idx)
        if point._disabled or not point._if_quant:
            return rows
        amax = rows.detach().abs().amax(-1, keepdim=True) if point.amax is None else point.amax[input]
        return point._fake_quantize(rows, scale_of(amax, point._num_bits))


def place_tables(model: nn.Module) -> list[str]:
    """Put every embedding table of `model` that is still float behind a quantizer, frozen at its rows' magnitudes.

    For a model that is injected already; `inject` does the same for one that is not. Returns the paths of the tables.
    """
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding) and not isinstance(module, QuantEmbedding) and "embeddings" in path
    ]
    for path, table in found:
        point = TensorQuantizer(f"{path}.weight_quantizer", 8, 0, "weight")
        point.set_amax(weight_amax(table.weight, 0))
        model.set_submodule(path, QuantEmbedding(table, point))
    return [path for path, _ in found]
