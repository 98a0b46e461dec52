"""The method `embeddings`: INT8 embedding tables with one scale per row; needs neither data nor training."""

from __future__ import annotations

import copy
from dataclasses import replace

from qdq.calibrate.calibrate import freeze_weights, summarise
from qdq.compress.method import CompressedModel, Method, Session
from qdq.inject import inject
from qdq.inject.embedding import QuantEmbedding, place_tables
from qdq.inject.spec import named_spec

TABLES_ALONE = named_spec("linear", linear=False, embedding_tables=True)


class Embeddings(Method):
    """INT8 embedding tables, beside whatever is quantized already."""

    name = "embeddings"

    def run(self, session: Session, before: CompressedModel) -> list[CompressedModel]:
        """The model with INT8 tables. torch.ao's baseline stays as it is: its files are not ours to change."""
        if before.save is not None:
            return [before]
        model = copy.deepcopy(before.model)
        if before.spec is None:
            inject(model, TABLES_ALONE)
            freeze_weights(model)
            spec, table = TABLES_ALONE, summarise(model, "none", None, 0, 0)
        else:
            assert before.table is not None  # a spec never comes without its table
            place_tables(model)
            spec, old = replace(before.spec, embedding_tables=True), before.table
            table = summarise(model, old.algorithm, old.percentile, old.samples, old.tokens)
        tables = [module for module in model.modules() if isinstance(module, QuantEmbedding)]
        rows = sum(module.num_embeddings for module in tables)
        values = sum(module.weight.numel() for module in tables)
        notes = {"tables": len(tables), "table_mb": [round(4e-6 * values, 2), round(1e-6 * (values + 4 * rows), 2)]}
        return [before.evolve("embeddings", notes, model=model, spec=spec, table=table)]
