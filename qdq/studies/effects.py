"""The worth of algorithms and treatments on one model: ``python -m qdq.studies.effects --model ... --eval-data ...``.

Every variant is built by fake quantization from the same calibration text and scored on the same labelled data: task
metric, closeness of the outputs to FP32, agreement. The report is JSON; docs/accuracy.md is generated from such files.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qdq.base.choices import PLACEMENTS
from qdq.calibrate.algorithms import Algorithm, algorithm_named
from qdq.calibrate.treatments.settings import PLAIN, Treatments
from qdq.pipeline.options import CompileOptions
from qdq.studies.command import calibration_parser, exit_code, publish
from qdq.studies.models import calibration_inputs

if TYPE_CHECKING:
    from qdq.tasks.closeness import Scored

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


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole report."""
    from qdq.calibrate.treatments.order import finish, prepare
    from qdq.inject import inject
    from qdq.inject.spec import named_spec
    from qdq.load.runner import TorchRunner
    from qdq.tasks.closeness import scored
    from qdq.tasks.loading import EvaluationSettings, load_evaluation

    # The floating-point model, and the texts that calibrate and score every variant of it.
    floating, batches = calibration_inputs(options)
    settings = EvaluationSettings(options.sequence, overlap=options.overlap, required=True)
    evaluation = load_evaluation(options.eval_data, floating, settings, options.eval_samples)
    reference = scored(evaluation, TorchRunner(floating.module()))
    rows: list[dict[str, Any]] = [{"placement": "–", "variant": "FP32", **_row(reference)}]
    for placement in options.placements.split(","):
        spec = named_spec(placement)
        for name, algorithm, treatments in variants():
            if options.only and not any(word in name for word in options.only.split(",")):
                continue
            loaded = replace(floating, model=copy.deepcopy(floating.model))
            inject(loaded.model, spec)
            started = time.process_time()
            # Only calibrating counts as this variant's cost, not scoring it.
            finish(prepare(loaded.module(), batches, spec, [algorithm], treatments), algorithm)
            cost = {"algorithm": algorithm.label, "cpu_seconds": round(time.process_time() - started, 1)}
            found = scored(evaluation, TorchRunner(loaded.module()), reference)
            rows.append({"placement": placement, "variant": name, **cost, **_row(found)})
            sys.stderr.write(f"{rows[-1]}\n")
    return {
        "model": floating.name,
        "samples": options.samples,
        "source": evaluation.source,
        "evaluated": evaluation.samples,
        "rows": rows,
    }


def _row(found: Scored) -> dict[str, Any]:
    return {"metrics": found.scores.values, "metric": found.scores.main, **found.closeness}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the report as JSON and write it with --out."""
    command = calibration_parser("effects", __doc__)
    command.add_argument("--eval-data", required=True)
    command.add_argument("--placements", default="linear+qk,qdqbert", help=f"of {', '.join(PLACEMENTS)}")
    command.add_argument("--only", help="names of variants that hold one of these words, separated by commas")
    command.add_argument("--eval-samples", type=int)
    command.add_argument("--overlap", type=int, help="tokens neighbouring windows share; -1: one window")
    options = command.parse_args(arguments)
    publish(measure(options), options.out)


if __name__ == "__main__":
    sys.exit(exit_code(main))
