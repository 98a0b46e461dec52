"""The cost of calibrating beside plain FP32: ``python -m qdq.studies.calibration_cost --model ... --calibration ...``.

Both run the same samples in the same micro-batches, alternating, in one process; the figure is the median over rounds
of (calibrated pass + every choice of thresholds - FP32 pass) / FP32 pass.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdq.base.artifacts import to_json, write_json
from qdq.calibrate.algorithms import ALGORITHMS, algorithm_named
from qdq.studies.models import micro_batches
from qdq.studies.study import exit_code, parser


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Alternate FP32 passes and calibrations with all algorithms over the same samples."""
    import torch

    from engines.cores import available_cores
    from qdq.calibrate.calibrate import collect, freeze_weights, settle
    from qdq.inject import inject
    from qdq.inject.spec import named_spec
    from qdq.loading.model import load_model
    from qdq.pipeline.run import prepare_torch

    # The same model twice, floating-point and ready to calibrate, and one set of batches.
    prepare_torch(options.threads or available_cores())
    floating, injected = load_model(options.model), load_model(options.model)
    batches = micro_batches(floating, options.calibration, options.samples, options.sequence)
    spec = named_spec(options.placement)
    inject(injected.model, spec)
    algorithms = [algorithm_named(name) for name in ALGORITHMS]
    module, plain = injected.module(), floating.module()
    freeze_weights(module)
    rounds = []  # seconds of the FP32 pass, of the calibration, and of its choice of thresholds
    for _ in range(options.rounds + 1):  # the first warms up
        started = time.perf_counter()
        with torch.no_grad():
            for batch in batches.feeds:
                plain(**batch)
        ran = time.perf_counter()
        collected = collect(module, batches, algorithms)
        choosing = time.perf_counter()
        for algorithm in algorithms:
            settle(module, spec, collected, algorithm)
        done = time.perf_counter()
        rounds.append((ran - started, done - ran, done - choosing))
    del rounds[0]
    return {
        "model": Path(options.model).name,
        "placement": options.placement,
        "algorithms": list(ALGORITHMS),
        "points": len(collected.points),
        "samples": collected.samples,
        "tokens": collected.tokens,
        "threads": torch.get_num_threads(),
        "cost": statistics.median((total - plain) / plain for plain, total, _ in rounds),
        "cost_of_search": statistics.median(choice / plain for plain, _, choice in rounds),
        "cost_by_round": [(total - plain) / plain for plain, total, _ in rounds],
        "kept_bytes": sum(c.counts.numel() * c.counts.element_size() for c in collected.points.values()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the report as JSON and write it with --out."""
    command = parser("calibration_cost", __doc__)
    for name in ("model", "calibration"):
        command.add_argument(f"--{name}", required=True)
    for name, default in (("samples", 128), ("sequence", 128), ("threads", 0), ("rounds", 5)):
        command.add_argument(f"--{name}", type=int, default=default)
    command.add_argument("--placement", default="qdqbert")
    command.add_argument("--out", type=Path, help="JSON file for the report, which is printed as well")
    options = command.parse_args(arguments)
    report = measure(options)
    if options.out is not None:
        write_json(options.out, report)
    sys.stdout.write(to_json(report))


if __name__ == "__main__":
    sys.exit(exit_code(main))
