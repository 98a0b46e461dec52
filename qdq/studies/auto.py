"""The automatic strategy beside the documented defaults by hand: ``python -m qdq.studies.auto``.

    python -m qdq.studies.auto                               everything docs/results/auto/ does not have yet
    python -m qdq.studies.auto --only minilm-mrpc:search     this part, again; a killed one continues
    python -m qdq.studies.auto --budget 5m --work /tmp/auto --results /tmp/auto/results    a rehearsal

`search` is what `qdq auto` does within the budget. `hand` is the documented default, dynabert+ptq at width 3/4, by its
example script within the same budget, with the rows that choose in the search as its development data. `race` times
the engines of both beside the whole model's in one interleaved run and scores them on the rows that judge. `t4`
compiles all of them for TensorRT and estimates a T4. Models and data lie beside the repository (`--shared`). Measure
on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.auto.search.settings import SearchSettings, seconds
from qdq.base.artifacts import read_json, write_json, write_text
from qdq.errors import ConfigError
from qdq.loading.source import is_checkpoint
from qdq.studies import pages
from qdq.studies.auto_page import AUTO, FP32, HAND, INT8
from qdq.studies.models import CONLL, MRPC, Case
from qdq.studies.study import RESULTS, ROOT, add_places, exit_code, parser

if TYPE_CHECKING:
    from qdq.text.data import Record

TARGET, GPU, DEVICE = "openvino", "tensorrt", "t4"
BUDGET = "30m"
ENGINES_S = 240.0  # of the budget by hand stay for calibration and engine
HAND_WIDTH = 0.75  # the documented width for six layers


@dataclass(frozen=True)
class Documented:
    """The documented command of a task: its script, batch, and training rows seen in all; and what judges its model.

    `test` is below the folder of data, "" where no such rows are at hand: then half of the development rows judge.
    """

    script: str
    batch: int
    flags: tuple[str, ...] = ()
    epochs: int = 3
    test: str = ""


CASES: Mapping[str, tuple[Case, Documented]] = {
    # The script's own defaults, from examples/config.yml
    MRPC.model: (MRPC, Documented("compress_seq_cls.py", 64)),
    # The command in the script's help
    CONLL.model: (
        CONLL,
        Documented(
            "compress_token_cls.py",
            32,
            (
                *("--per_device_train_batch_size", "32"),
                *("--per_device_eval_batch_size", "32", "--learning_rate", "5e-5"),
            ),
            test="conll2003/test.txt",
        ),
    ),
}


@dataclass(frozen=True)
class Places:
    """Folders that a measurement reads and writes, and the seconds that search and hand each have."""

    shared: Path
    work: Path
    results: Path
    budget: float

    def settings(self, name: str) -> SearchSettings:
        """The search of a case."""
        case, documented = CASES[name]
        return SearchSettings(
            model=str(self.shared / "models" / case.model),
            train=str(self.shared / "data" / case.train),
            dev=str(self.shared / "data" / case.dev),
            test=str(self.shared / "data" / documented.test) if documented.test else "",
            target=TARGET,
            budget=self.budget,
            sequence=case.sequence,
            save_dir=str(self.work / name / "search"),
        )


def measure_search(places: Places, name: str) -> dict[str, Any]:
    """The search's report."""
    from qdq.auto.search.command import search
    from qdq.base.screen import Screen

    started = time.monotonic()
    report = search(places.settings(name), Screen())
    return {**report, "wall_s": round(time.monotonic() - started, 1)}


def measure_hand(places: Places, name: str) -> dict[str, Any]:
    """The documented command with the rows that choose as development data; its best candidate's engine."""
    from qdq.base.screen import Screen
    from qdq.pipeline.compile import compile_model
    from qdq.pipeline.options import CompileOptions

    # The script, with no more steps than the budget has time for
    settings, documented, output = places.settings(name), CASES[name][1], places.work / name / "hand"
    data, steps = _dataset(settings, places.work / name / "data"), _steps(places, name)
    limit = [] if steps is None else ["--max_steps", str(steps)]
    words = [f"examples/{documented.script}", "--dataset", str(data), "--model_name_or_path"]
    words += [settings.model, "--output_dir", str(output), *documented.flags]
    words += ["--strategy", "dynabert+ptq", "--report_to", "none", "--disable_tqdm", "True", *limit]
    started = time.monotonic()
    code = subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode
    if code:
        raise ConfigError(f"python {' '.join(words)}: ended with {code}; see above")
    # The engine of its best candidate
    best = read_json(output / "compression.json")["candidates"][0]
    checkpoint, work = output / best["folder"], places.work / name / "hand-engine"
    options = CompileOptions(model=str(checkpoint), out=str(work), target=TARGET, eval_data=settings.dev)
    compile_model(options, Screen(), engine_only=True)
    return {
        "command": " ".join(["python", *words]),
        "candidate": best["name"],
        "metric": best["metric"],
        "checkpoint": str(checkpoint),
        "work": str(work),
        "wall_s": round(time.monotonic() - started, 1),
    }


def _dataset(settings: SearchSettings, folder: Path) -> Path:
    """A folder with the training rows, and as development data the rows that choose."""
    from qdq.text.data import read_records

    rows: dict[str, list[Record]] = {
        "train": list(read_records(settings.source(settings.train))[0]),
        "dev": list(read_records(settings.source(settings.dev))[0][:: 1 if settings.test else 2]),
    }
    for split, records in rows.items():
        if records[0].words:
            lines = ["\n".join(f"{w} {t}" for w, t in zip(one.words, one.tags, strict=True)) for one in records]
            write_text(folder / f"{split}.txt", "\n\n".join(lines) + "\n")
        else:
            cells = [f"{one.text}\t{one.pair}\t{one.label}" for one in records]
            write_text(folder / f"{split}.tsv", "\n".join(["sentence1\tsentence2\tlabel", *cells, ""]))
    return folder


def _steps(places: Places, name: str) -> int | None:
    """Steps that fit the budget by the search's measured costs; None where the documented ones do."""
    found = read_json(Path(places.settings(name).save_dir) / "jobs" / "fp32" / "result.json")
    documented, step = CASES[name][1], found["step"]
    own = (step["seconds"] - step["teacher"]) * HAND_WIDTH + step["teacher"]
    fits = int((places.budget - ENGINES_S) / (own * documented.batch / found["batch"]))
    asked = documented.epochs * -(-found["rows"] // documented.batch)
    return None if asked <= fits else max(1, fits)


def checkpoints(places: Places, name: str) -> dict[str, str]:
    """The checkpoints behind the engines of the race."""
    record = read_json(places.results / f"{name}.json")
    jobs = Path(places.settings(name).save_dir) / "jobs"
    deployed = Path(record["search"]["deployed"])
    chosen = read_json(jobs / deployed.parent.name / "result.json")["checkpoint"]
    return {INT8: places.settings(name).model, AUTO: chosen, HAND: record["hand"]["checkpoint"]}


def measure_race(places: Places, name: str) -> dict[str, Any]:
    """All engines in one interleaved run, and their metric on the rows that judge, which chose nothing."""
    from engines.cores import available_cores
    from engines.targets import TARGETS, EngineOptions
    from qdq.auto.search.material import SIDES, read_judges, reference_scores
    from qdq.auto.search.race import Entry, race
    from qdq.loading.model import load_model

    settings, record = places.settings(name), read_json(places.results / f"{name}.json")
    jobs, threads = Path(settings.save_dir) / "jobs", available_cores()
    works = {
        INT8: jobs / "ptq" / "engine",
        AUTO: Path(record["search"]["deployed"]),
        HAND: Path(record["hand"]["work"]),
    }
    timed = race([Entry(key, work, TARGET) for key, work in works.items()], settings, threads)
    # Scores of every engine against the FP32 model's
    judges = read_judges(settings, load_model(settings.model))
    reference = reference_scores(jobs / "fp32" / "outputs.npz", judges)
    for key, work in works.items():
        runner = TARGETS[TARGET].open(work / TARGET / TARGETS[TARGET].engine, EngineOptions(threads))
        for side in SIDES:
            scores = getattr(judges, side).score(runner)
            difference = scores.difference(reference[side])[scores.main].as_json()
            timed["engines"][key][side] = {"value": scores.value, "samples": scores.samples, **difference}
    for side in SIDES:
        timed["engines"]["fp32"][side] = {"value": reference[side].value, "samples": reference[side].samples}
    timed["engines"][FP32] = timed["engines"].pop("fp32")
    return timed


def measure_t4(places: Places, name: str) -> dict[str, Any]:
    """Estimated milliseconds on a T4 of every checkpoint as `qdq compile --target tensorrt` lowers it."""
    from qdq.auto.search.race import estimate_of
    from qdq.base.screen import Screen
    from qdq.pipeline.compile import compile_model
    from qdq.pipeline.options import CompileOptions

    settings = places.settings(name)
    found: dict[str, float] = {}
    for key, checkpoint in checkpoints(places, name).items():
        work = places.work / name / GPU / key.replace(" ", "-")
        # A quantized checkpoint keeps its points and ranges.
        text = None if is_checkpoint(Path(checkpoint)) else settings.train
        options = CompileOptions(model=checkpoint, out=str(work), target=GPU, calibration=text, eval_data=settings.dev)
        compile_model(options, Screen(), engine_only=True)
        estimates = estimate_of(work / GPU / "model.onnx", settings, DEVICE)
        found[key] = estimates["lowered"]
        if key == INT8:
            found |= {FP32: estimates["float32"], "FP16": estimates["float16"]}
    return {"device": DEVICE, "estimate_ms": found}


PARTS: Mapping[str, Callable[[Places, str], dict[str, Any]]] = {
    "search": measure_search,
    "hand": measure_hand,
    "race": measure_race,
    "t4": measure_t4,
}
NAMES = [f"{name}:{part}" for name in CASES for part in PARTS]


def measure(places: Places, name: str, part: str) -> Path:
    """Measure one part of a case and add it to its JSON file. Raises QdqError."""
    found, record = PARTS[part](places, name), places.results / f"{name}.json"
    return write_json(record, {**(read_json(record) if record.is_file() else {}), part: found})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for, or what is missing, then write the pages."""
    command = parser("auto", __doc__)
    command.add_argument("--only", nargs="+", choices=NAMES, metavar="MODEL:PART", help="measure these, again")
    command.add_argument("--budget", default=BUDGET, help=f"of the search, and by hand (default: {BUDGET})")
    command.add_argument("--results", type=Path, default=RESULTS / "auto", help="folder of the JSON files")
    add_places(command, "auto")
    options = command.parse_args(arguments)
    places = Places(options.shared, options.work, options.results, seconds(options.budget))
    for full in options.only or NAMES:
        name, part = full.split(":")
        record = places.results / f"{name}.json"
        if options.only or not record.is_file() or part not in read_json(record):
            _forget(places, name, part, options)
            measure(places, name, part)
    if options.results == RESULTS / "auto":
        pages.main()


def _forget(places: Places, name: str, part: str, options: argparse.Namespace) -> None:
    """Start a part that is measured again, and was whole, from nothing; one that was killed continues."""
    record = places.results / f"{name}.json"
    if options.only and record.is_file() and part in read_json(record) and part in ("search", "hand"):
        shutil.rmtree(places.work / name / part, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(exit_code(main))
