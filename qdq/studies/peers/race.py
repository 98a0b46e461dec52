"""Our CPU engines beside the tools a user would pick instead: one checkpoint, one data set, one interleaved run.

``python -m qdq.studies.peers.race --model M --calibration TRAIN --eval-data DEV --json OUT`` (`make bench-peers` does
so in an environment that has NNCF). Written, per contestant: at every shape the latency and its ratios to NNCF and to
ONNX Runtime FP32 (medians of per-round ratios, see engines.bench), accuracy, agreement, logit cosine and MSE against
torch FP32, bytes of weights, the memory a running one needs, and seconds from the checkpoint (ours) or from the FP32
ONNX file (the tools, which all share one export) to the first answer.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from engines.opening import Opening
from qdq.base.artifacts import write_json
from qdq.base.screen import Screen, Stage
from qdq.base.versions import versions
from qdq.load.source import short_name
from qdq.studies.models import batches, random_bert_base
from qdq.studies.peers import build
from qdq.studies.peers.build import OURS, TASK, TORCH, Built, Material, open_peer
from qdq.studies.peers.table import NNCF, render_peers
from qdq.studies.peers.tools import TOOLS
from qdq.studies.study import exit_code, parser

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
    races = []
    for shape in options.shapes:
        with screen.stage("x".join(map(str, shape)), undisturbed=True) as stage:
            races.append(_race(material, peers, shape, stage))
    return {
        "model": short_name(options.model),
        "precision_hint": options.precision_hint,
        "shapes": races,
        "rows": rows,
        "float_export_s": material.float_export_s,
        "built_alone": True,  # reports from before 2026-11-22 were built one after another in one process
        "skipped": skipped,
    }


def _rows(material: Material, peers: Mapping[str, Built], stage: Stage) -> dict[str, Any]:
    """Per contestant what does not depend on the shape: accuracy.json, bytes, memory, seconds."""
    from engines.compare import compare
    from qdq.tasks.labels import class_indices

    loaded, shape = material.loaded, material.options.shapes[0]
    feeds = batches(loaded, material.texts, shape)
    labels = class_indices(material.texts, loaded.labels, len(loaded.labels), required=False)[0]
    torch_fp32 = open_peer(Opening(TORCH[0], str(material.folder), material.threads), shape)
    expected = [torch_fp32(batch) for batch in feeds]
    rows = {}
    for done, (name, (opening, costs)) in enumerate(peers.items()):
        stage.progress(done, len(peers))
        reference, runner = iter(expected), open_peer(opening, shape)
        rows[name] = {
            **costs,
            "peak_rss_bytes": build.alone(build.peak_memory, opening, feeds[0])[1],
            "accuracy": compare(lambda _, answers=reference: next(answers), runner, feeds, TASK, labels),
        }
    return rows


def _race(material: Material, peers: Mapping[str, Built], shape: tuple[int, int], stage: Stage) -> dict[str, Any]:
    """benchmark.json of all contestants at one shape. Smaller shapes get more rounds, for about the same time."""
    from engines.bench import BenchSettings, Contestant, bench
    from qdq.text.encode import workload_of_shape

    loaded, options = material.loaded, material.options
    feeds = workload_of_shape(loaded.tokenizer, material.texts, loaded.inputs, shape, WORKLOAD_BATCHES)
    most = max(batch * sequence for batch, sequence in options.shapes)
    rounds = max(options.rounds, min(MOST_ROUNDS, options.rounds * most // (shape[0] * shape[1])))
    settings = BenchSettings(
        *shape, budget_s=None, warmup=2, samples=rounds, threads=material.threads, pause_s=PAUSE_S, bases=NNCF
    )
    runners = [
        Contestant(name, "torch" if name in TORCH else opening.engine, open_peer(opening, shape))
        for name, (opening, _) in peers.items()
    ]
    nncf = {"nncf": metadata.version("nncf")} if NNCF[0] in peers else {}
    return bench(runners, feeds, settings, {**versions(), **nncf}, stage.progress)


def _shapes(text: str) -> tuple[tuple[int, int], ...]:
    found = [re.fullmatch(r"(\d+)x(\d+)", part) for part in text.split(",")]
    shapes = tuple((int(match[1]), int(match[2])) for match in found if match)
    if not all(found) or len(set(shapes)) < len(shapes):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of BATCHxSEQUENCE such as 40x128,1x128, none twice")
    return shapes


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report to --json and print its tables. Raises QdqError."""
    command = parser("peers.race", __doc__)
    add = command.add_argument
    add("--model", required=True, help=f"sequence-classification checkpoint, or {RANDOM}")
    add("--json", required=True, type=Path, help="where the report goes")
    for name in ("calibration", "eval-data"):
        add(f"--{name}", help="file or folder (default: bundled text)")
    add("--work", type=Path, default=Path("build/peers"), help="where everything is built (default: %(default)s)")
    add("--only", nargs="*", choices=EVERYONE, default=(), metavar="NAME", help="contestants (default: all)")
    add("--precision-hint", choices=("f32", "bf16"), default="f32", help="of OpenVINO outside INT8")
    add("--shapes", type=_shapes, default=((40, 128),), metavar="BxS,...", help="(default: 40x128)")
    add("--rounds", type=int, default=10, metavar="N", help="of the largest shape (default: %(default)s)")
    for name, default in (("samples", 128), ("eval-samples", 512), ("threads", 0)):
        add(f"--{name}", type=int, default=default, metavar="N", help="(default: %(default)s)")
    options = command.parse_args(arguments)
    if options.rounds < LEAST_ROUNDS:
        command.error(f"--rounds: {options.rounds} is less than {LEAST_ROUNDS}, whose median one outlier cannot move")
    report = bench_peers(options)
    write_json(options.json, report)
    sys.stdout.write(render_peers(report) + "\n")


if __name__ == "__main__":
    sys.exit(exit_code(main))
