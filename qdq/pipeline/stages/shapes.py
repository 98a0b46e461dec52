"""Serving shapes: latency of full rows by batch and sequence, and what padding and length buckets cost or save."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import write_json
from qdq.base.screen import Stage
from qdq.errors import ConfigError
from qdq.pipeline.run import Run
from qdq.pipeline.stages.bench import contestants
from qdq.pipeline.stages.build import open_engine
from qdq.pipeline.stages.load import check_shape

if TYPE_CHECKING:
    from engines.types import Runner

BATCHES, SEQUENCES = (1, 8, 40), (16, 64, 128, 384)
SECONDS = 3.0  # per shape; everyone is timed at least three times however long that takes
PASSES = 3  # over all evaluation texts, per batching policy, interleaved


def bench_shapes(run: Run, stage: Stage) -> Sequence[Path]:
    """shapes.json: full rows of every shape the model takes, and throughput on whole texts by batching policy.

    Raises ConfigError for multiple choice, whose rows are not texts.
    """
    from engines.bench import BenchSettings, bench
    from qdq.text.workload import full_rows

    loaded = run.reference
    if loaded.task.choices:
        raise ConfigError("qdq shapes: multiple choice has no single sequence per text; use 'qdq bench'")
    texts = run.evaluation.records
    streams = run.options.streams if run.options.mode == "throughput" else 1
    # Race the contestants at every shape; one that the model or the texts cannot fill is skipped with its reason.
    shapes: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    grid = [(batch, sequence) for sequence in SEQUENCES for batch in BATCHES]
    for done, (batch, sequence) in enumerate(grid):
        stage.progress(done, len(grid) + 1)
        try:
            check_shape(loaded, batch, sequence)
            feeds = full_rows(loaded.tokenizer, texts, loaded.inputs, (batch, sequence), 5)
        except ConfigError as error:
            skipped.append({"batch": batch, "sequence": sequence, "reason": str(error)})
            continue
        settings = BenchSettings(batch, sequence, budget_s=SECONDS, threads=run.options.threads, streams=streams)
        report = bench(contestants(run, stage, (batch, sequence)), feeds, settings, run.versions)
        shapes.append({key: report[key] for key in ("batch", "sequence", "contestants")})
    if not shapes:
        raise ConfigError(f"no serving shape fits: {skipped[0]['reason']}")
    # Whole texts by batching policy.
    policies = bench_policies(run, open_engine(run))
    stage.say(f"{len(shapes)} shapes; bucketed batching {policies['bucketed']['speedup']:.2f} x fixed padding")
    found = {"shapes": shapes, "skipped": skipped, "batching": policies, "machine": report["machine"]}
    return (write_json(run.target / "shapes.json", found),)


def bench_policies(run: Run, engine: Runner) -> dict[str, Any]:
    """Sequences per second of `engine` over the evaluation texts under every batching policy, and the padding."""
    from engines.bench.buckets import POLICIES, padding_share, plan
    from qdq.text.encode import encode_batch

    loaded, options, records = run.reference, run.options, run.evaluation.records
    rows = [encode_batch(loaded.tokenizer, [record], loaded.inputs, options.sequence, "longest") for record in records]
    lengths = [row["input_ids"].shape[1] for row in rows]
    plans = {policy: plan(lengths, options.batch, options.sequence, policy, options.buckets) for policy in POLICIES}
    feeds = {
        policy: [
            encode_batch(loaded.tokenizer, [records[index] for index in batch.texts], loaded.inputs, batch.width)
            for batch in batches
        ]
        for policy, batches in plans.items()
    }
    seconds: dict[str, list[float]] = {policy: [] for policy in plans}
    for turn in range(PASSES + 1):  # the first pass warms up
        for policy, batches in feeds.items():
            begin = time.perf_counter()
            for feed in batches:
                engine(feed)
            if turn:
                seconds[policy].append(time.perf_counter() - begin)
    fixed = seconds["fixed"]
    return {
        policy: {
            "batches": len(batches),
            "padding_share": padding_share(lengths, batches),
            "widths": sorted({batch.width for batch in batches}),
            "sequences_per_s": len(lengths) / statistics.median(seconds[policy]),
            "speedup": statistics.median(base / own for base, own in zip(fixed, seconds[policy], strict=True)),
        }
        for policy, batches in plans.items()
    }


def render_shapes(report: Mapping[str, Any]) -> str:
    """Text for the screen: milliseconds per batch and speedup over the same runtime's FP32, then the policies."""
    from engines.bench.buckets import POLICIES

    lines = ["batch  sequence   p50 ms     seq/s   x own   x ORT"]
    for shape in report["shapes"]:
        entry = shape["contestants"]["int8"]
        own = entry["speedup"].get(f"{entry['engine']}-fp32", 1.0)
        lines.append(
            f"{shape['batch']:5d}{shape['sequence']:10d}{entry['latency_ms']['p50']:9.2f}"
            f"{entry['sequences_per_s']:10.1f}{own:8.2f}{entry['speedup']['onnxruntime-fp32']:8.2f}"
        )
    lines += [f"{item['batch']:5d}{item['sequence']:10d}  skipped: {item['reason']}" for item in report["skipped"]]
    lines += ["", "batching   batches   padding     seq/s   x fixed"]
    for policy, row in report["batching"].items():
        lines.append(
            f"{policy:9s}{row['batches']:9d}{row['padding_share']:10.0%}{row['sequences_per_s']:10.1f}"
            f"{row['speedup']:10.2f}   {POLICIES[policy]}"
        )
    return "\n".join(lines) + "\n"
