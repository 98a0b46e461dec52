"""What algorithms and treatments are worth on one model: ``python -m qdq.studies.effects --model ... --eval-data ...``.

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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.calibrate.algorithms import Algorithm, algorithm_named
from qdq.calibrate.treatments.settings import PLAIN, Treatments
from qdq.pipeline.options import PLACEMENT_NAMES, CompileOptions, available_cores

if TYPE_CHECKING:
    from qdq.tasks.closeness import Scored

ALGORITHMS = ("max", "percentile:99.99", "percentile:99.999", "KL", "mse", "emd", "avg", "moving_average")


def variants() -> Iterator[tuple[str, Algorithm | None, Treatments]]:
    """(name, algorithm, treatments): the default, it without each treatment, and plain ranges by every algorithm.

    None is the default algorithm.
    """
    default = Treatments()
    yield "default", None, default
    for name in (name for name, value in default.as_json().items() if value is True):
        yield f"without {name}", None, replace(default, **{name: False})  # type: ignore[arg-type]  # a switch
    for round_type in ("round", "adaround"):
        yield f"round_type {round_type}", None, replace(default, round_type=round_type)
    for name in ALGORITHMS:
        algorithm = algorithm_named(name)
        yield f"plain {algorithm.label}", algorithm, PLAIN
    for name in ("max", "percentile:99.99", "mse"):
        algorithm = algorithm_named(name)
        yield f"treated {algorithm.label}", algorithm, replace(default, clip_search=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the report as JSON and write it with --out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("model", "calibration", "eval-data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--placements", default="linear+qk,qdqbert", help=f"of {', '.join(PLACEMENT_NAMES)}")
    parser.add_argument("--only", help="names of variants that hold one of these words, separated by commas")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--eval-samples", type=int)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--overlap", type=int, help="tokens neighbouring windows share; -1: one window")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out")
    options = parser.parse_args(arguments)
    from qdq.base.artifacts import to_json, write_json
    from qdq.pipeline.run import prepare_torch

    prepare_torch(options.threads or available_cores())
    report = measure(options)
    if options.out:
        write_json(Path(options.out), report)
    sys.stdout.write(to_json(report))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole report."""
    from qdq.calibrate.treatments.order import finish, prepare
    from qdq.inject import inject
    from qdq.inject.spec import named_spec
    from qdq.load.model import load_model
    from qdq.load.runner import TorchRunner
    from qdq.studies.calibration_cost import micro_batches
    from qdq.tasks.closeness import scored
    from qdq.tasks.loading import EvaluationSettings, load_evaluation

    floating = load_model(options.model)
    batches = micro_batches(floating, options.calibration, options)
    settings = EvaluationSettings(options.sequence, overlap=options.overlap, required=True)
    evaluation = load_evaluation(options.eval_data, floating, settings, options.eval_samples)
    reference = scored(evaluation, TorchRunner(floating.module()))
    rows: list[dict[str, Any]] = [{"placement": "–", "variant": "FP32", **_row(reference)}]
    for placement in options.placements.split(","):
        spec = named_spec(placement)
        default = CompileOptions().algorithm(None)
        for name, algorithm, treatments in variants():
            if options.only and not any(word in name for word in options.only.split(",")):
                continue
            loaded = replace(floating, model=copy.deepcopy(floating.model))
            inject(loaded.model, spec)
            started = time.process_time()
            chosen = algorithm or default
            prepared = prepare(loaded.module(), batches, spec, [chosen], treatments)
            finish(prepared, chosen)
            seconds = time.process_time() - started
            row = {"placement": placement, "variant": name, "algorithm": chosen.label, "cpu_seconds": round(seconds, 1)}
            rows.append({**row, **_row(scored(evaluation, TorchRunner(loaded.module()), reference))})
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


if __name__ == "__main__":
    sys.exit(main())
