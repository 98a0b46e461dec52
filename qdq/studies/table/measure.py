"""The parts of the table for one model: fine-tune, compress, build, score, time. Each leaves its work for the next."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import read_json, write_json
from qdq.base.versions import versions
from qdq.errors import ConfigError, QdqError
from qdq.studies.study import ROOT
from qdq.studies.table.cases import CHINESE, LAYERS, SCRIPTS, TableCase

if TYPE_CHECKING:
    from engines.openvino import OpenVINORunner

THREADS = 2
TIMED = 5  # different batches that a benchmark rotates through
BUDGET_S = 40.0  # of the benchmark of four engines
COMPARED = 64  # texts that a build compares its engine on
TARGET = "openvino"
FP32, INT8, PRUNED, BOTH = "FP32", "INT8", "pruned FP32", "pruned INT8"
# Rows of the table by the strategy that makes the model
STRATEGIES = {INT8: "ptq", PRUNED: "dynabert", BOTH: "dynabert+ptq"}


@dataclass(frozen=True)
class Places:
    """Folders that a measurement reads and writes: models and data, its work, the JSON files."""

    shared: Path
    work: Path
    results: Path

    def model(self, case: TableCase) -> Path:
        """The checkpoint of a case: fine-tuned here, or a shared one."""
        return (self.work if case.finetuning else self.shared) / "models" / case.name

    def data(self, case: TableCase) -> Path:
        """A folder with the case's files under the names that scripts look for: links to the shared ones."""
        folder = self.work / "data" / case.name
        folder.mkdir(parents=True, exist_ok=True)
        for split, name in (("train", case.train), ("dev", case.dev)):
            link = folder / f"{split}{Path(name).suffix}"
            if not link.is_symlink():
                link.symlink_to((self.shared / "data" / name).resolve())
        return folder

    def compressed(self, case: TableCase) -> Path:
        """The output folder of the compression."""
        return self.work / "compressed" / case.name

    def record(self, case: TableCase) -> Path:
        """The JSON file of a case."""
        return self.results / f"{case.name}.json"


Words = Sequence[str]
Run = Callable[[Words], None]  # a script or module of this repository, by its words behind python


def run_python(words: Words) -> None:
    """Run a script or module of this repository with this interpreter. Raises QdqError when it fails."""
    sys.stdout.write(f"\n$ python {shlex.join(words)}\n")
    sys.stdout.flush()
    code = subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode
    if code:
        raise QdqError(f"python {shlex.join(words)}: ended with {code}; see above, and start the same part again")


def finetuning(places: Places, case: TableCase) -> list[list[str]]:
    """The commands that make a model of a language without a checkpoint: its encoder, then its training; else none."""
    if not case.finetuning:
        return []
    start = places.work / "models" / f"start-{case.start or 'bundled'}"
    text = [str(places.shared / "data" / name) for name in CHINESE]
    taken = ["--model", case.layers(places.shared), "--layers", str(LAYERS)]
    encoder = ["-m", "qdq.studies.table.characters", str(start), *text, *taken]
    words = ["examples/finetune.py", "--task", case.task, "--dataset", str(places.data(case))]
    words += ["--model_name_or_path", str(start), "--output_dir", str(places.model(case))]
    return [encoder, [*words, *case.finetuning_flags()]]


def compression(places: Places, case: TableCase) -> list[str]:
    """The command that quantizes, prunes, and does both."""
    words = [f"examples/{SCRIPTS[case.task]}", "--dataset", str(places.data(case))]
    words += ["--model_name_or_path", str(places.model(case)), "--output_dir", str(places.compressed(case))]
    return [*words, *case.compression_flags()]


def train(places: Places, case: TableCase, run: Run) -> dict[str, Any]:
    """Fine-tune a model where the case says so; its commands and size."""
    commands = finetuning(places, case)
    for words in commands:
        run(words)
    return {"commands": [f"python {shlex.join(words)}" for words in commands]}


def compress(places: Places, case: TableCase, run: Run) -> dict[str, Any]:
    """Make the compressed models; what `compress()` reports, with the command."""
    words = compression(places, case)
    run(words)
    return {"command": f"python {shlex.join(words)}", **read_json(places.compressed(case) / "compression.json")}


def build(places: Places, case: TableCase, run: Run) -> dict[str, Any]:
    """Engines of the given model in FP32 and of every compressed one. Raises QdqError."""
    from qdq.base.screen import Screen
    from qdq.compress.deployed_graph import deploy_graph
    from qdq.compress.materials import of_checkpoint
    from qdq.pipeline.options import CompileOptions

    shape = ("--batch", str(case.batch), "--sequence", str(case.sequence), "--threads", str(THREADS))
    data = ("--eval-data", str(places.shared / "data" / case.dev), "--eval-samples", str(COMPARED))
    output = places.compressed(case)
    if not (output / "compression.json").is_file():
        raise ConfigError(f"{case.name}:build needs {case.name}:compress; do that first")
    run(("-m", "qdq.compress.deploy", str(output), "--target", TARGET, *data, *shape, "--bench-seconds", "1"))
    # The given model is no candidate of its own compression.
    asked = CompileOptions(
        eval_data=data[1],
        eval_samples=COMPARED,
        batch=case.batch,
        sequence=case.sequence,
        threads=THREADS,
        bench_seconds=1.0,
    )
    work = output / "given"
    work.mkdir(exist_ok=True)
    material, options, _ = of_checkpoint(places.model(case), work, asked)
    deploy_graph(material, TARGET, work, options, Screen())
    return {name: str(folder) for name, folder in engines(places, case).items()}


def engines(places: Places, case: TableCase) -> dict[str, Path]:
    """Engine files by row of the table. Raises ConfigError for those that have not been built."""
    output = places.compressed(case)
    found = {FP32: output / "given" / TARGET / "model.xml"}
    rows = read_json(output / "compression.json")["candidates"]
    for name, strategy in STRATEGIES.items():
        row = next(row for row in rows if strategy_of(row["notes"]) == strategy)
        found[name] = output / "engines" / row["name"] / TARGET / "model.xml"
    if missing := next((path for path in found.values() if not path.is_file()), None):
        raise ConfigError(f"{missing}: is not there; do {case.name}:build first")
    return found


def strategy_of(notes: dict[str, Any]) -> str:
    """The strategy that made a candidate, by its notes."""
    steps = ("dynabert" if "width" in notes else "", "ptq" if "algorithm" in notes else "")
    return "+".join(filter(None, steps))


def score(places: Places, case: TableCase, run: Run) -> dict[str, Any]:
    """The metric of every engine on the development data, and the difference to FP32 with its interval."""
    del run
    from qdq.loading.model import load_model
    from qdq.tasks.loading import EvaluationSettings, load_evaluation

    # The development data, and every engine on them
    loaded = load_model(str(places.model(case)), task=case.task)
    settings = EvaluationSettings(case.sequence, overlap=case.windows, required=True)
    evaluation = load_evaluation(str(places.shared / "data" / case.dev), loaded, settings, case.rows)
    scores = {}
    for name, file in engines(places, case).items():
        scores[name] = evaluation.score(_open(file))
        sys.stdout.write(f"{case.name} {name}: {scores[name].values}\n")
        sys.stdout.flush()
    # Beside FP32, answer by answer
    main = scores[FP32].main
    changes = {name: found.difference(scores[FP32])[main] for name, found in scores.items()}
    return {
        "metric": main,
        "samples": evaluation.samples,
        "engines": {
            name: {
                "values": found.values,
                "points": changes[name].difference,
                "interval": [changes[name].low, changes[name].high],
            }
            for name, found in scores.items()
        },
    }


def _open(file: Path, shape: tuple[int, int] | None = None) -> OpenVINORunner:
    """An engine as `qdq compile` opens it; with a shape, as it is timed."""
    from engines.openvino import OpenVINORunner, OpenVINOSettings

    return OpenVINORunner(file, OpenVINOSettings(THREADS, shape=shape))


def time(places: Places, case: TableCase, run: Run) -> dict[str, Any]:
    """benchmark.json of the four engines in one interleaved run, on full rows of the development texts."""
    del run
    from engines.bench import BenchSettings, Contestant, bench
    from qdq.loading.model import load_model
    from qdq.text.data import TextSource, read_records
    from qdq.text.workload import full_rows

    loaded, shape = load_model(str(places.model(case)), task=case.task), (case.batch, case.sequence)
    records, _ = read_records(TextSource(str(places.shared / "data" / case.dev)), case.batch * TIMED)
    feeds = full_rows(loaded.tokenizer, records, loaded.inputs, shape, TIMED)
    # The precision is in the names; all are engines of one runtime.
    field = [Contestant(name, TARGET, _open(file, shape)) for name, file in engines(places, case).items()]
    settings = BenchSettings(*shape, budget_s=BUDGET_S, threads=THREADS, bases=(FP32,))
    return bench(field, feeds, settings, versions())


PARTS: dict[str, Callable[[Places, TableCase, Run], dict[str, Any]]] = {
    "train": train,
    "compress": compress,
    "build": build,
    "score": score,
    "time": time,
}


def measure(places: Places, case: TableCase, part: str, run: Run = run_python) -> Path:
    """Do one part of a case and add it to its JSON file. Raises QdqError."""
    found = PARTS[part](places, case, run)
    record = places.record(case)
    before = read_json(record) if record.is_file() else {}
    return write_json(record, {**before, part: found})
