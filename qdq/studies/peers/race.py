"""Our CPU engines beside the tools a user would pick instead: one checkpoint, one data set, one interleaved run.

``python -m qdq.studies.peers.race --model M --calibration TRAIN --eval-data DEV --json FOLDER`` (`make bench-peers`
does so in an environment that has NNCF). Two kinds of workload: full rows, of every shape, in which every token is
real, and the evaluation texts as they are, padded to one shape and cropped to the longest text of the batch; everybody
gets the same batches. Written, per contestant: the latency on each and its ratios to NNCF and to ONNX Runtime FP32
(medians of per-round ratios, see engines.bench), task metric, agreement, logit cosine and MSE against torch FP32, bytes
of weights, the memory a running one needs, and seconds from the checkpoint (ours) or from the FP32 ONNX file (the
tools, which all share one export) to the first answer.

The report's name says the model and the instruction set that multiplies INT8, so that a machine's results replace those
of its own kind only: minilm-mrpc-avx512_vnni.json.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from engines.bench import CROPPED, BenchSettings, Contestant, bench, both_forms
from engines.instructions import int8_sums
from engines.opening import Opening
from qdq.base.artifacts import write_json
from qdq.base.screen import Screen, Stage
from qdq.base.types import Feeds
from qdq.base.versions import versions
from qdq.loading.source import short_name
from qdq.studies.models import random_bert_base
from qdq.studies.peers import build
from qdq.studies.peers.build import OURS, TORCH, Built, Material, open_peer
from qdq.studies.peers.table import NNCF, render_peers
from qdq.studies.peers.tools import TOOLS
from qdq.studies.study import exit_code, parser
from qdq.text.workload import full_rows, workload_of_shape

RANDOM = "random:bert-base"
LEAST_ROUNDS, MOST_ROUNDS = 3, 100
WORKLOAD_BATCHES = 5
PAUSE_S = 0.02  # longer than ONNX Runtime's threads spin after a call
EVERYONE = (*OURS, *TORCH, *TOOLS)


def bench_peers(options: argparse.Namespace) -> dict[str, Any]:
    """Build, check and time every contestant; the object `render_peers` shows. Raises QdqError."""
    if options.model == RANDOM:
        options.model = str(random_bert_base(options.work.with_name("bert-base-random"), classifier=True))
    screen = Screen()
    material = build.prepare(options)
    peers, skipped = build.build_all(material, [name for name in EVERYONE if name in (options.only or EVERYONE)])
    with screen.stage("accuracy") as stage:
        rows = _rows(material, peers, stage)
    races, texts = [], None
    for shape in options.shapes:
        with screen.stage("x".join(map(str, shape)), undisturbed=True) as stage:
            races.append(_race(material, peers, shape, stage))
    if options.texts:
        with screen.stage("texts", undisturbed=True) as stage:
            texts = _race_of_texts(material, peers, stage)
    return {
        "model": short_name(options.model),
        "precision_hint": options.precision_hint,
        "shapes": races,
        "texts": texts,
        "rows": rows,
        "float_export_s": material.float_export_s,
        "built_alone": True,  # reports from before 2026-11-22 were built one after another in one process
        "skipped": skipped,
    }


def _rows(material: Material, peers: Mapping[str, Built], stage: Stage) -> dict[str, Any]:
    """Per contestant what does not depend on the workload: accuracy.json, bytes, memory, seconds."""
    from engines.compare import compare
    from qdq.pipeline.stages.verify import task_metrics
    from qdq.tasks.loading import EvaluationSettings, evaluation_of

    # Texts in batches cropped to their longest, the answers of torch in FP32, and a full batch for the memory.
    loaded, shape = material.loaded, material.options.shapes[0]
    evaluation = evaluation_of(material.texts, loaded, EvaluationSettings(shape[1], shape[0]))
    reference = evaluation.reader(open_peer(Opening(TORCH[0], str(material.folder), material.threads), shape))
    expected = [reference(batch) for batch in evaluation.feeds]
    (full,) = full_rows(loaded.tokenizer, material.texts, loaded.inputs, shape, 1)
    # Every contestant's.
    rows = {}
    for done, (name, (opening, costs)) in enumerate(peers.items()):
        stage.progress(done, len(peers))
        answers, reader = iter(expected), evaluation.reader(open_peer(opening, shape))
        accuracy = compare(lambda _, known=answers: next(known), reader, evaluation.feeds, loaded.task.name)
        accuracy |= task_metrics(reference.scores(), reader.scores(), evaluation.reason)
        memory = build.alone(build.peak_memory, opening, full)[1]
        rows[name] = {**costs, "peak_rss_bytes": memory, "accuracy": accuracy}
    return rows


def _race(material: Material, peers: Mapping[str, Built], shape: tuple[int, int], stage: Stage) -> dict[str, Any]:
    """benchmark.json of all contestants on full rows of one shape.

    The first shape gets all rounds, the others as many as take about half its time.
    """
    options = material.options
    most = options.shapes[0][0] * options.shapes[0][1]
    half = options.rounds * most // (2 * shape[0] * shape[1])
    rounds = options.rounds if shape == options.shapes[0] else max(LEAST_ROUNDS, min(MOST_ROUNDS, half))
    feeds = full_rows(
        material.loaded.tokenizer, material.texts, material.loaded.inputs, shape, min(rounds, WORKLOAD_BATCHES)
    )
    return _timed(material, _opened(peers, shape), feeds, rounds, stage)


def _race_of_texts(material: Material, peers: Mapping[str, Built], stage: Stage) -> dict[str, Any]:
    """benchmark.json of all contestants on the texts as they are, each fed them padded and cropped.

    A tool's model that was compiled for one shape gets them padded only.
    """
    shape = material.options.texts
    loaded = material.loaded
    feeds = workload_of_shape(loaded.tokenizer, material.texts, loaded.inputs, shape, WORKLOAD_BATCHES)
    fixed = {f"{name}{CROPPED}" for name, (opening, _) in peers.items() if name in TOOLS and opening.static}
    forms = [form for form in both_forms(_opened(peers, shape)) if form.name not in fixed]
    return _timed(material, forms, feeds, material.options.rounds, stage)


def _opened(peers: Mapping[str, Built], shape: tuple[int, int]) -> list[Contestant]:
    return [
        Contestant(name, "torch" if name in TORCH else opening.engine, open_peer(opening, shape))
        for name, (opening, _) in peers.items()
    ]


def _timed(
    material: Material, runners: Sequence[Contestant], workload: Sequence[Feeds], rounds: int, stage: Stage
) -> dict[str, Any]:
    """benchmark.json of `rounds` rounds in which everybody runs."""
    batch, sequence = workload[0]["input_ids"].shape
    lengths = {int(feeds["attention_mask"].sum()) for feeds in workload}
    settings = BenchSettings(
        batch,
        sequence,
        budget_s=None,
        warmup=max(2, len(lengths)),  # engines prepare for each when they first see it
        samples=rounds,
        threads=material.threads,
        pause_s=PAUSE_S,
        bases=(*NNCF, f"{NNCF[0]}{CROPPED}"),
    )
    nncf = {"nncf": metadata.version("nncf")} if any(one.name == NNCF[0] for one in runners) else {}
    return bench(runners, workload, settings, {**versions(), **nncf}, stage.progress)


def _shape(text: str) -> tuple[int, int]:
    found = _shapes(text)
    if len(found) != 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not one shape such as 40x128")
    return found[0]


def _shapes(text: str) -> tuple[tuple[int, int], ...]:
    found = [re.fullmatch(r"(\d+)x(\d+)", part) for part in text.split(",")]
    shapes = tuple((int(match[1]), int(match[2])) for match in found if match)
    if not all(found) or len(set(shapes)) < len(shapes):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of BATCHxSEQUENCE such as 40x128,1x128, none twice")
    return shapes


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report to --json and print its tables. Raises QdqError."""
    # The command line, and what argparse cannot check.
    command = parser("peers.race", __doc__)
    add = command.add_argument
    add("--model", required=True, help=f"sequence- or token-classification checkpoint, or {RANDOM}")
    add("--json", required=True, type=Path, metavar="FOLDER", help="where the report goes")
    for name in ("calibration", "eval-data"):
        add(f"--{name}", help="file or folder (default: bundled text)")
    add("--work", type=Path, default=Path("build/peers"), help="where everything is built (default: %(default)s)")
    add("--only", nargs="*", choices=EVERYONE, default=(), metavar="NAME", help="contestants (default: all)")
    add("--precision-hint", choices=("f32", "bf16"), default="f32", help="of OpenVINO outside INT8")
    add("--shapes", type=_shapes, default=((40, 128),), metavar="BxS,...", help="of full rows (default: 40x128)")
    add("--texts", type=_shape, metavar="BxS", help="time the evaluation texts, too, in batches of this shape")
    add("--rounds", type=int, default=10, metavar="N", help="of the first shape and the texts (default: %(default)s)")
    for name, default in (("samples", 128), ("eval-samples", 512), ("threads", 0)):
        add(f"--{name}", type=int, default=default, metavar="N", help="(default: %(default)s)")
    options = command.parse_args(arguments)
    if options.rounds < LEAST_ROUNDS:
        command.error(f"--rounds: {options.rounds} is less than {LEAST_ROUNDS}, whose median one outlier cannot move")
    report = bench_peers(options)
    instructions = (*int8_sums().instructions, "unknown")
    write_json(options.json / f"{report['model']}-{instructions[0]}.json", report)
    sys.stdout.write(render_peers(report) + "\n")


if __name__ == "__main__":
    sys.exit(exit_code(main))
