"""Part of stage 5: packing.json, the form of a batch without padding with its limits, for whoever feeds the graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.interface import interface
from engines.packing import FILE, first_fit
from qdq.base.artifacts import write_json
from qdq.loading.kinds import CHOICES
from qdq.pipeline.run import Run
from qdq.pipeline.workdir import SEED


def write_packing(run: Run, report: Mapping[str, Any]) -> Sequence[Path]:
    """Write packing.json beside the lowered graph of `report`; none for a padded batch, where an earlier one goes."""
    path = run.target / FILE
    facts = next((step["facts"] for step in report["passes"] if "facts" in step), None)
    if facts is None:
        path.unlink(missing_ok=True)
        return ()
    texts = run.options.batch * (CHOICES if facts["choices"] else 1)
    limits = {"row": run.options.sequence, "texts": texts}
    usual = usual_fill(token_counts(run), texts, run.options.sequence)
    inputs = [tensor.name for tensor in interface(run.lowered)[0]]
    return (write_json(path, {**facts, "inputs": inputs, **limits, **usual}),)


def token_counts(run: Run) -> NDArray[np.int64]:
    """Real tokens of every calibration text, in an order that has nothing to do with them."""
    from qdq.calibrate.rebatch import MICRO_BATCH
    from qdq.text.encode import calibration_batches

    loaded, records = run.reference, run.calibration.records
    choices = CHOICES if loaded.task.choices else None
    feeds = calibration_batches(
        loaded.tokenizer, records, loaded.inputs, run.options.sequence, micro_batch=MICRO_BATCH, choices=choices
    )
    counts = np.concatenate([feed["attention_mask"].sum(axis=-1).reshape(-1) for feed in feeds])
    return np.random.default_rng(SEED).permutation(counts)


def usual_fill(counts: NDArray[np.int64], texts: int, row: int) -> dict[str, int]:
    """Rows of `row` cells and tokens that `texts` texts of these lengths fill on average, rounded up.

    Too few lengths for one batch are repeated.
    """
    batches = np.resize(counts, (max(len(counts) // texts, 1), texts))
    rows = np.mean([first_fit(batch, row)[1] for batch in batches])
    return {"rows": math.ceil(rows), "tokens": math.ceil(batches.sum(axis=1).mean())}
