"""The worth of algorithms and treatments on one model, for docs/accuracy.md.

Every variant is built by fake quantization from the same calibration text and scored on the same labelled data: task
metric, closeness of the outputs to FP32, agreement.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.calibrate.algorithms import Algorithm, algorithm_named
from qdq.calibrate.treatments.settings import PLAIN, Treatments
from qdq.pipeline.options import CompileOptions
from qdq.studies.models import Case, micro_batches, scored_in_fp32

if TYPE_CHECKING:
    from qdq.tasks.closeness import Scored

PLACEMENT = "qdqbert"
ALGORITHMS = ("max", "percentile:99.99", "percentile:99.999", "KL", "mse", "emd", "avg", "moving_average")


def variants() -> Iterator[tuple[str, Algorithm, Treatments]]:
    """(name, algorithm, treatments): the default, it without each treatment, and plain ranges by every algorithm."""
    own, default = CompileOptions().algorithm(None), Treatments()
    yield "default", own, default
    for name in (name for name, value in default.as_json().items() if value is True):
        yield f"without {name}", own, replace(default, **{name: False})  # type: ignore[arg-type]  # a switch
    for round_type in ("round", "adaround"):
        yield f"round_type {round_type}", own, replace(default, round_type=round_type)
    for name in ALGORITHMS:
        algorithm = algorithm_named(name)
        yield f"plain {algorithm.label}", algorithm, PLAIN
    for name in ("max", "percentile:99.99", "mse"):
        algorithm = algorithm_named(name)
        yield f"treated {algorithm.label}", algorithm, replace(default, clip_search=False)


def measure_effects(case: Case, shared: Path, only: Collection[str] | None = None) -> dict[str, Any]:
    """The whole report: every variant, or those named in `only`. Raises QdqError."""
    from qdq.calibrate.treatments.order import finish, prepare
    from qdq.inject import inject
    from qdq.inject.spec import named_spec
    from qdq.load.runner import TorchRunner
    from qdq.pipeline.options import available_cores
    from qdq.pipeline.run import prepare_torch
    from qdq.tasks.closeness import scored

    # The floating-point model, and the texts that calibrate and score every variant of it.
    prepare_torch(available_cores())
    floating, evaluation, reference = scored_in_fp32(case, shared)
    batches = micro_batches(floating, str(shared / "data" / case.train), case.texts, case.sequence)
    spec = named_spec(PLACEMENT)
    rows: list[dict[str, Any]] = [{"placement": "–", "variant": "FP32", **_row(reference)}]
    for name, algorithm, treatments in variants():
        if only is not None and name not in only:
            continue
        loaded = replace(floating, model=copy.deepcopy(floating.model))
        inject(loaded.model, spec)
        started = time.process_time()
        # Only calibrating counts as this variant's cost, not scoring it.
        finish(prepare(loaded.module(), batches, spec, [algorithm], treatments), algorithm)
        cost = {"algorithm": algorithm.label, "cpu_seconds": round(time.process_time() - started, 1)}
        found = scored(evaluation, TorchRunner(loaded.module()), reference)
        rows.append({"placement": PLACEMENT, "variant": name, **cost, **_row(found)})
        sys.stderr.write(f"{rows[-1]}\n")
    return {
        "model": floating.name,
        "samples": case.texts,
        "source": evaluation.source,
        "evaluated": evaluation.samples,
        "rows": rows,
    }


def _row(found: Scored) -> dict[str, Any]:
    return {"metrics": found.scores.values, "metric": found.scores.main, **found.closeness}
