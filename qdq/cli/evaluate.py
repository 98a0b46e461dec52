"""`qdq evaluate`: task metrics of models, fake-quantized checkpoints and engines on one data set, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import write_json, write_text
from qdq.base.choices import PRECISION_HINTS
from qdq.base.config import choice
from qdq.base.screen import Screen
from qdq.cli.contestants import contestants, model_for
from qdq.errors import ConfigError
from qdq.load.kinds import TASKS
from qdq.pipeline.options import available_cores
from qdq.pipeline.run import prepare_torch
from qdq.text.data import TextSource

if TYPE_CHECKING:
    from qdq.tasks.evaluation import Evaluation, Scores


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `qdq evaluate` as typed.

    Attributes:
        what: what is scored, see `contestants`; differences are to the first.
        data: file, folder or ``datasets:`` source.
        model: whose tokenizer, task and classes say what the data mean; None is found from `what`.
        task: None is the model's own.
        samples: first rows to use; None is all.
        sequence, batch, overlap, scoring, metric: see `qdq.tasks.loading.EvaluationSettings`.
        predictions: JSON lines of the last contestant's predictions (a JSON object of answers for a .json name).
        out: JSON file of all figures.
        threads: 0 is every core.
    """

    what: tuple[str, ...]
    data: str
    model: str | None = None
    task: str | None = None
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    samples: int | None = None
    sequence: int = 128
    batch: int = 32
    overlap: int | None = None
    scoring: str | None = None
    metric: str | None = None
    predictions: str | None = None
    out: str | None = None
    threads: int = 0
    precision_hint: str = "f32"

    def validate(self) -> None:
        """Raise ConfigError for the first value that cannot be meant."""
        if self.task is not None:
            choice(self.task, TASKS, "--task")
        choice(self.precision_hint, PRECISION_HINTS, "--precision-hint")
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"--samples: {self.samples} is not a number of rows; give at least 1")


def evaluate(options: EvaluateOptions, screen: Screen) -> dict[str, Any]:
    """Score every contestant; returns (and with `out` writes) the report. Raises QdqError."""
    from qdq.load.model import load_model
    from qdq.tasks.loading import EvaluationSettings, load_evaluation

    options.validate()
    threads = options.threads or available_cores()
    entries = [entry for what in options.what for entry in contestants(what, threads, options.precision_hint)]
    prepare_torch(threads)
    loaded = load_model(options.model or model_for(options.what[0]), options.task)
    settings = EvaluationSettings(
        options.sequence, options.batch, options.overlap, options.scoring, options.metric, required=True
    )
    if options.sequence > loaded.max_sequence:
        raise ConfigError(
            f"--sequence: {options.sequence} is beyond the {loaded.max_sequence} positions of {loaded.name}"
        )
    source = TextSource(options.data, options.text_columns, options.label_column)
    evaluation = load_evaluation(source, loaded, settings, options.samples)
    if not evaluation.labelled and options.predictions is None:
        raise ConfigError(f"no metric: {evaluation.reason}; write predictions with --predictions FILE, or give labels")
    screen.row("data", f"{evaluation.source}, {evaluation.samples} samples")
    for note in evaluation.notes:
        screen.row("", note)
    scores: dict[str, Scores] = {}
    for entry in entries:
        with screen.stage("evaluate") as stage:
            scores[entry.name] = evaluation.score(entry.open(), stage.progress)
            stage.say(entry.name)
    if options.predictions is not None:
        write_predictions(Path(options.predictions), scores[entries[-1].name])
    report = as_json(evaluation, scores)
    if options.out is not None:
        write_json(Path(options.out), report)
    return report


def write_predictions(path: Path, scores: Scores) -> None:
    """JSON lines, one answer each; for a name ending in .json, SQuAD's object of answers by question id.

    Raises ConfigError for a .json name where answers are no texts.
    """
    if path.suffix == ".json":
        if any("answer" not in answer for answer in scores.answers):
            raise ConfigError(f"--predictions {path}: an object of answers is for question answering; name it .jsonl")
        write_json(path, {str(answer["id"]): answer["answer"] for answer in scores.answers})
    else:
        write_text(path, "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in scores.answers))


def as_json(evaluation: Evaluation, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """The report: metrics per contestant, and its difference to the first with its interval."""
    names = list(scores)
    reference = scores[names[0]]
    entries = []
    for name in names:
        difference = {} if name == names[0] else scores[name].difference(reference)
        entries.append(
            {
                "name": name,
                "metrics": scores[name].values,
                "difference": {metric: interval.as_json() for metric, interval in difference.items()},
            }
        )
    return {
        "task": evaluation.task,
        "source": evaluation.source,
        "samples": evaluation.samples,
        "notes": list(evaluation.notes),
        "metric": reference.main,
        "contestants": entries,
    }


def render(report: Mapping[str, Any]) -> str:
    """The report as a table of at most 80 columns where names allow: one block per metric."""
    entries = report["contestants"]
    if not report["metric"]:
        return f"no metric; predictions of {report['samples']} samples written\n"
    width = max(len(entry["name"]) for entry in entries)
    metrics = [report["metric"], *(name for name in entries[0]["metrics"] if name != report["metric"])]
    lines = [f"{report['samples']} samples; points to the first, with 95 % bootstrap interval over paired samples"]
    for metric in metrics:
        lines += ["", metric]
        for entry in entries:
            text = f"  {entry['name']:<{width}}  {entry['metrics'][metric]:.4f}"
            if change := entry["difference"].get(metric):
                low, high = change["low_points"], change["high_points"]
                text += f"  {change['difference_points']:+6.2f}  [{low:+.2f}, {high:+.2f}]"
            lines.append(text)
    return "\n".join(lines) + "\n"
