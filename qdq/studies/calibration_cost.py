"""The cost of calibrating beside plain FP32: ``python -m qdq.studies.calibration_cost --model ... --calibration ...``.

Both run the same samples in the same micro-batches, alternating, in one process; the figure is the median over rounds
of (calibrated pass + every threshold search - FP32 pass) / FP32 pass.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.calibrate.algorithms import ALGORITHMS, algorithm_named

if TYPE_CHECKING:
    from qdq.calibrate.rebatch import MicroBatches
    from qdq.load.model import LoadedModel

ROUNDS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the report as JSON and write it with --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--placement", default="qdqbert")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out")
    options = parser.parse_args(arguments)
    from qdq.base.artifacts import to_json, write_json
    from qdq.pipeline.options import available_cores
    from qdq.pipeline.run import prepare_torch

    prepare_torch(options.threads or available_cores())
    report = measure(options.model, options.calibration, options)
    if options.out:
        write_json(Path(options.out), report)
    sys.stdout.write(to_json(report))
    return 0


def measure(model: str, calibration: str, options: argparse.Namespace) -> dict[str, Any]:
    """Alternate FP32 passes and calibrations with all algorithms over the same samples."""
    import torch

    from qdq.calibrate.calibrate import collect, freeze_weights, settle
    from qdq.inject import inject
    from qdq.inject.spec import named_spec
    from qdq.load.model import load_model

    floating, injected = load_model(model), load_model(model)
    spec = named_spec(options.placement)
    inject(injected.model, spec)
    batches = micro_batches(floating, calibration, options)
    algorithms = [algorithm_named(name) for name in ALGORITHMS]
    module, plain = injected.module(), floating.module()
    freeze_weights(module)
    fp32, calibrated, searches = [], [], []
    for _ in range(options.rounds + 1):  # the first warms up
        started = time.perf_counter()
        with torch.no_grad():
            for batch in batches.feeds:
                plain(**batch)
        ran = time.perf_counter()
        collected = collect(module, batches, algorithms)
        searching = time.perf_counter()
        for algorithm in algorithms:
            settle(module, spec, collected, algorithm)
        done = time.perf_counter()
        fp32.append(ran - started)
        calibrated.append(done - ran)
        searches.append(done - searching)
    rounds = list(zip(fp32[1:], calibrated[1:], searches[1:], strict=True))
    return {
        "model": Path(model).name,
        "placement": options.placement,
        "algorithms": list(ALGORITHMS),
        "points": len(collected.points),
        "samples": collected.samples,
        "tokens": collected.tokens,
        "threads": torch.get_num_threads(),
        "cost": statistics.median((total - plain) / plain for plain, total, _ in rounds),
        "cost_of_search": statistics.median(search / plain for plain, _, search in rounds),
        "cost_by_round": [(total - plain) / plain for plain, total, _ in rounds],
        "kept_bytes": sum(c.counts.numel() * c.counts.element_size() for c in collected.points.values()),
    }


def micro_batches(loaded: LoadedModel, calibration: str, options: argparse.Namespace) -> MicroBatches:
    """The first samples of the file as calibration runs them."""
    import torch

    from qdq.calibrate.rebatch import MicroBatches
    from qdq.text.data import TextSource, read_records
    from qdq.text.encode import encode_batch

    records, _ = read_records(TextSource(calibration), options.samples)
    feed = encode_batch(loaded.tokenizer, records, loaded.inputs, options.sequence, pad_to="longest")
    return MicroBatches.of([{name: torch.from_numpy(array) for name, array in feed.items()}], 4)


if __name__ == "__main__":
    sys.exit(main())
