"""The measured tables of docs/compression.md: every part is a documented command that is run here and recorded.

    python -m qdq.studies.compression                            everything docs/results/compression/ does not have yet
    python -m qdq.studies.compression --only minilm-mrpc:qat     this part, again; a killed one continues
    python -m qdq.studies.compression --list                     the parts and their commands

Models and data lie beside the repository (`--shared`). Trainings are counted in steps and seeded, so a part gives the
same metric again. Time the part `engines` on an otherwise idle machine.
"""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from qdq.base.artifacts import read_json, write_json
from qdq.base.versions import versions
from qdq.errors import ConfigError, QdqError
from qdq.studies import pages
from qdq.studies.compression_recipes import CASES, PARTS, TRAININGS
from qdq.studies.study import RESULTS, ROOT, add_places, exit_code, parser

NAMES = [f"{model}:{part}" for model in CASES for part in PARTS]
Words = tuple[str, ...]
Run = Callable[[Words], None]  # a script or module of this repository, by its words behind python


@dataclass(frozen=True)
class Places:
    """Folders that a measurement reads and writes: models and data, its work, the JSON files."""

    shared: Path
    work: Path
    results: Path

    def output(self, model: str, part: str) -> Path:
        """The work folder of a part."""
        return self.work / model / part

    def record(self, model: str, part: str) -> Path:
        """The JSON file of a part."""
        return self.results / f"{model}-{part}.json"


def training_command(places: Places, model: str, part: str) -> Words:
    """The script and flags of a part, relative to the repository."""
    recipe = CASES[model]
    typed, size = recipe.case.typed(places.shared), str(recipe.samples_per_step)
    return (
        *(f"examples/{recipe.script}", "--dataset", str(Path(typed["eval_data"]).parent)),
        *("--model_name_or_path", typed["model"]),
        *("--output_dir", str(places.output(model, part))),
        *("--per_device_train_batch_size", size, "--per_device_eval_batch_size", "32", "--report_to", "none"),
        *f"{TRAININGS[part]} {recipe.flags.get(part, '')}".split(),
    )


def measure_training(places: Places, model: str, part: str, run: Run) -> dict[str, Any]:
    """Run a script; the content of its compression.json with command, versions, and CPU minutes unless it continued."""
    command, output = training_command(places, model, part), places.output(model, part)
    continued, before = output.exists(), _cpu_seconds()
    run(command)
    minutes = {} if continued else {"cpu_minutes": round((_cpu_seconds() - before) / 60, 1)}
    found = read_json(output / "compression.json")
    return {**found, **minutes, "command": f"python {shlex.join(command)}", "versions": versions()}


def _cpu_seconds() -> float:
    """Of all commands run so far: what a training costs, whatever else the machine was doing meanwhile."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def measure_engines(places: Places, model: str, part: str, run: Run) -> dict[str, Any]:
    """OpenVINO engines of the whole and the narrow models: timed in one interleaved run, and scored by the task.

    Raises ConfigError when the parts they come from have not been measured.
    """
    typed, base = CASES[model].case.typed(places.shared), places.output(model, part)
    original, data = typed["model"], typed["eval_data"]
    qdq, scores, timed = ("-m", "qdq.cli.main"), base / "scores.json", base / "speed.json"
    folders: dict[str, Path] = {}
    for name, checkpoint in _deployed(places, model).items():
        folders[name] = base / checkpoint.name
        target = ("--target", "openvino", "--out", str(folders[name]), "--eval-data", data)
        run((*qdq, "compile", "--model", str(checkpoint), *target, "--bench-seconds", "1"))
    files = [str(folder / "openvino" / "model.xml") for folder in folders.values()]
    scored = (*qdq, "evaluate", original, *files, "--data", data, "--model", original)
    run((*scored, "--out", str(scores)))
    engines = [f"{name}={folder / 'openvino'}" for name, folder in folders.items()]
    run(("examples/compare_engines.py", *engines, "--tokenizer", original, "--out", str(timed)))
    main = read_json(scores)["metric"]
    metrics = [entry["metrics"][main] for entry in read_json(scores)["contestants"]]
    return {**read_json(timed), "scores": dict(zip(("fp32", *folders), metrics, strict=True)), "metric": main}


def _deployed(places: Places, model: str) -> dict[str, Path]:
    """Engine name -> checkpoint: the whole model in INT8 first, then one of each width."""
    found: dict[str, Path] = {}
    for part, label in (("ptq-cpu", "INT8"), ("dynabert+ptq", "INT8 width {}")):
        record = places.output(model, part) / "compression.json"
        if not record.is_file():
            raise ConfigError(f"{model}:engines needs {model}:{part}; measure that first")
        rows = sorted(read_json(record)["candidates"], key=lambda row: -Fraction(row["notes"].get("width", 1)))
        for row in rows:
            found.setdefault(label.format(row["notes"].get("width")), record.parent / row["folder"])
    return found


def measure(places: Places, model: str, part: str, run: Run) -> Path:
    """Measure one part and write its JSON. Raises QdqError."""
    report = (measure_engines if part == "engines" else measure_training)(places, model, part, run)
    return write_json(places.record(model, part), report)


def run_python(words: Words) -> None:
    """Run a script or module of this repository with this interpreter. Raises QdqError when it fails."""
    sys.stdout.write(f"\n$ python {shlex.join(words)}\n")
    sys.stdout.flush()
    code = subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode
    if code:
        raise QdqError(f"python {shlex.join(words)}: ended with {code}; see above, and start the same part again")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for, or what is missing, then write the page."""
    command = parser("compression", __doc__)
    command.add_argument("--only", nargs="+", choices=NAMES, metavar="MODEL:PART", help="measure these, again")
    command.add_argument("--list", action="store_true", help="print parts and commands, measure nothing")
    add_places(command, "compression")
    options = command.parse_args(arguments)
    places = Places(options.shared, options.work, RESULTS / "compression")
    for name in options.only or NAMES:
        model, part = name.split(":")
        if options.list:
            words = "(after the others)" if part == "engines" else shlex.join(training_command(places, model, part))
            sys.stdout.write(f"{name}\n  {words}\n")
        elif options.only or not places.record(model, part).is_file():
            measure(places, model, part, run_python)
    if not options.list:
        pages.main()


if __name__ == "__main__":
    sys.exit(exit_code(main))
