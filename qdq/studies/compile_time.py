"""Seconds from a checkpoint to the lowered graph, ours beside NNCF's: ``python -m qdq.studies.compile_time``.

Ours is stages 1 to 5 for OpenVINO. Theirs is NNCF's quantization and the FP32 export it starts from, torch's
TorchScript exporter with eager attention, as its users make it. Each runs in a process of its own, its start and its
imports included; the three take turns, and the ratio is that of the medians. Needs NNCF (`make bench-peers` installs
it in an environment of its own).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from engines.bench.machine import machine
from qdq.base.artifacts import read_json, to_json, write_json
from qdq.base.versions import versions
from qdq.loading.source import short_name
from qdq.studies.models import random_bert_base, run_stages
from qdq.studies.peers.build import TASK, alone, export_plain
from qdq.studies.peers.race import RANDOM
from qdq.studies.peers.tools import FLOAT, build_artifact
from qdq.studies.study import RESULTS, exit_code, parser

OURS, EXPORT, NNCF = "ours", "fp32 export", "nncf"  # what is timed
JSON = RESULTS / "performance" / "compile_time.json"
BATCH, SEQUENCE = 40, 128
CALIBRATION_BATCH = 8


def measure(options: argparse.Namespace, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Run `options.rounds` rounds, after the ones of the report `earlier`; the new report of this model.

    Raises QdqError.
    """
    seconds = {name: list(earlier.get("seconds", {}).get(name, ())) for name in (OURS, EXPORT, NNCF)}
    folder, calibration = _material(options)
    typed = {"model": str(folder), "task": TASK, "target": "openvino", "calibration": options.calibration}
    typed |= {"eval_data": options.eval_data, "samples": options.samples, "batch": BATCH, "sequence": SEQUENCE}
    for number in range(len(seconds[OURS]), len(seconds[OURS]) + options.rounds):
        work = options.work / str(number)  # a new one: nothing is up to date
        work.mkdir(parents=True)
        ours = alone(run_stages, ("calibrate", "export", "lower"), {**typed, "out": str(work / "qdq")})
        export = alone(export_plain, folder, TASK, calibration[0], work / FLOAT)
        nncf = alone(build_artifact, work / FLOAT, calibration, work / "nncf.xml")
        for name, (taken, _) in {OURS: ours, EXPORT: export, NNCF: nncf}.items():
            seconds[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    return {
        "seconds": seconds,
        "ratio": medians[OURS] / (medians[EXPORT] + medians[NNCF]),
        "samples": options.samples,
        "machine": machine(),
        "versions": {**versions(), "nncf": metadata.version("nncf")},
    }


def _material(options: argparse.Namespace) -> tuple[Path, list[Any]]:
    """The checkpoint's folder, and the calibration texts as NNCF takes them, int64 [8, S]."""
    from qdq.loading.model import load_model
    from qdq.pipeline.options import CompileOptions, resolve
    from qdq.pipeline.texts import calibration_texts
    from qdq.studies.models import batches

    loaded = load_model(options.model, TASK)
    typed = CompileOptions(model=options.model, calibration=options.calibration, samples=options.samples, task=TASK)
    texts = calibration_texts(resolve(typed, loaded.name), TASK).records
    return loaded.folder, batches(loaded, texts, (CALIBRATION_BATCH, SEQUENCE))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print this model's report and put it into --json. Raises QdqError."""
    command = parser("compile_time", __doc__)
    add = command.add_argument
    add("--model", required=True, help=f"sequence-classification checkpoint, or {RANDOM}")
    for name in ("calibration", "eval-data"):
        add(f"--{name}", required=True, help="file of texts")
    for name, default in (("samples", 128), ("rounds", 3)):
        add(f"--{name}", type=int, default=default, metavar="N", help="(default: %(default)s)")
    add("--more", action="store_true", help="add rounds to those in --json")
    add("--json", type=Path, default=JSON, help="reports by model (default: %(default)s)")
    add("--work", type=Path, default=Path("build/compile_time"), help="where everything is built; a new folder")
    options = command.parse_args(arguments)
    if options.model == RANDOM:
        options.model = str(random_bert_base(options.work.with_name("bert-base-random"), classifier=True))
    reports = read_json(options.json) if options.json.is_file() else {}
    name = short_name(options.model)
    reports[name] = measure(options, reports.get(name, {}) if options.more else {})
    write_json(options.json, reports)
    sys.stdout.write(to_json(reports[name]))


if __name__ == "__main__":
    sys.exit(exit_code(main))
