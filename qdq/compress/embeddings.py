"""The step `embeddings`: INT8 embedding tables with one scale per row; needs neither data nor training."""

from __future__ import annotations

import copy
from dataclasses import replace

from qdq.calibrate.calibrate import freeze_weights, summarise
from qdq.compress.step import Candidate, Session
from qdq.inject import inject
from qdq.inject.embedding import QuantEmbedding, place_tables
from qdq.inject.families import family_of
from qdq.inject.spec import named_spec

TABLES_ALONE = named_spec("linear", linear=False, embedding_tables=True)


class Embeddings:
    """Stores the tables of every candidate as INT8, beside whatever is quantized already."""

    name = "embeddings"

    def check(self, session: Session) -> None:
        """Raise ModelError for an unsupported family."""
        family_of(session.model.config.model_type)

    def run(self, session: Session, candidate: Candidate) -> list[Candidate]:
        """The candidate with INT8 tables. torch.ao's baseline stays as it is: its files are not ours to change."""
        if candidate.save is not None:
            return [candidate]
        model = copy.deepcopy(candidate.model)
        if candidate.spec is None:
            inject(model, TABLES_ALONE)
            freeze_weights(model)
            spec, table = TABLES_ALONE, summarise(model, "none", None, 0, 0)
        else:
            assert candidate.table is not None  # a spec never comes without its table
            place_tables(model)
            spec, before = replace(candidate.spec, embedding_tables=True), candidate.table
            table = summarise(model, before.algorithm, before.percentile, before.samples, before.tokens)
        tables = [module for module in model.modules() if isinstance(module, QuantEmbedding)]
        rows = sum(module.num_embeddings for module in tables)
        values = sum(module.weight.numel() for module in tables)
        notes = {"tables": len(tables), "table_mb": [round(4e-6 * values, 2), round(1e-6 * (values + 4 * rows), 2)]}
        return [candidate.evolve("embeddings", notes, model=model, spec=spec, table=table)]
