"""Part of stage 6, race: for `--target auto` on a CPU the INT8 engines of its runtimes compete; race.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qdq.base.artifacts import read_json, write_json
from qdq.base.screen import Stage
from qdq.pipeline.run import Run
from qdq.pipeline.stages.bench import WORKLOAD_BATCHES, requests_at_once, workload
from qdq.pipeline.stages.build import open_engine

REPORT = "race.json"
SECONDS = 2.0  # everyone is timed at least three times however long that takes


def race(run: Run, stage: Stage) -> Sequence[Path]:
    """Time the engines of all rivals on the run's text, as it is; race.json, whose ``target`` is the winner's.

    An engine counts by its better form: batches padded to the full sequence, or cropped to their longest text.
    """
    from engines.bench import BenchSettings, Contestant, bench, best_form, both_forms

    options, feeds = run.options, workload(run, WORKLOAD_BATCHES)
    shape = feeds[0]["input_ids"].shape
    settings = BenchSettings(
        options.batch,
        options.sequence,
        budget_s=SECONDS,
        warmup=len(feeds),
        threads=options.threads,
        streams=options.streams if options.mode == "throughput" else 1,
    )
    entries = [Contestant(target, target, open_engine(run.aimed_at(target), shape)) for target in run.rivals]
    report = bench(both_forms(requests_at_once(run, entries)), feeds, settings, run.versions, stage.progress)
    timed = report["contestants"]
    latency = {target: timed[best_form(timed, target)]["latency_ms"]["p50"] for target in run.rivals}
    first, *others = sorted(run.rivals, key=lambda target: latency[target])
    beaten = ", ".join(f"{target} {latency[target]:.1f}" for target in others)
    stage.say(f"{first}: a batch of the texts in {latency[first]:.1f} ms; {beaten}")
    return (write_json(run.work.path / REPORT, {"target": first, **report}),)


def settled(run: Run) -> Run:
    """The run for the target that won the last race in its work directory; without one, for the first that is built."""
    path = run.work.path / REPORT
    built = tuple(target for target in run.rivals if (run.work.path / target / "build.json").is_file())
    winner = read_json(path).get("target") if path.is_file() else None
    target = winner if winner in built else next(iter(built), run.options.target)
    return run.aimed_at(target, built or run.rivals)
