"""`qdq evaluate`: task metrics of models, fake-quantized checkpoints and engines on one data set, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.cores import available_cores
from qdq.base.artifacts import write_json, write_text
from qdq.base.choices import INFORMATION_EXTRACTION, PRECISION_HINTS
from qdq.base.option import check, option, values_for
from qdq.cli.contestants import Contestants, Own, contestants, model_for
from qdq.errors import ConfigError
from qdq.loading.kinds import TASKS
from qdq.pipeline.options import HEADER, LABEL_COLUMN, LABELS, MANY, MODEL_CLASS
from qdq.text.data import TextSource
from qdq.uie.prompts import LANGUAGES, kind_of, language_named

if TYPE_CHECKING:
    from qdq.base.screen import Screen
    from qdq.tasks.evaluation import Evaluation, Scores


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `qdq evaluate` as typed; sequence to metric are those of `qdq.tasks.loading.EvaluationSettings`."""

    what: tuple[str, ...] = option(
        MISSING,
        "hub id or folder (FP32), checkpoint/ of a run (fake-quantized), .onnx, .xml or .plan file, or a work "
        "directory (all in it); differences are to the first",
        metavar="WHAT",
        positional=True,
    )
    data: str = option(MISSING, "file, folder or datasets:NAME[:SPLIT]; CoNLL and SQuAD too", metavar="DATA")
    model: str | None = option(
        None, "whose tokenizer and classes to use (default: of WHAT, or beside the file)", metavar="ID"
    )
    task: str | None = option(None, " (default: from the checkpoint's architecture)", choices=TASKS)
    model_class: str | None = option(None, MODEL_CLASS, metavar="CLASS")
    text_columns: tuple[str, ...] = option((), " (default: detected)", metavar="A[,B]")
    label_column: str | None = option(None, LABEL_COLUMN)
    header: tuple[str, ...] = option((), HEADER, metavar="A,B")
    labels: tuple[str, ...] = option((), LABELS, metavar="A,B")
    samples: int | None = option(None, "first rows to use (default: all)", within=(1, MANY))
    sequence: int = option(128, "tokens; longer texts are cut")
    batch: int = option(32, "rows per batch")
    overlap: int | None = option(
        None, "context tokens neighbouring windows share; -1: one window only (default: a third of --sequence)"
    )
    scoring: str | None = option(None, "squad or cmrc (default: by the contexts' script)")
    metric: str | None = option(None, "the metric that decides (default: the task's own)")
    predictions: str | None = option(
        None,
        "write the last WHAT's predictions as JSON lines (.json: SQuAD's form) (default: not written)",
        metavar="FILE",
    )
    debug: bool = option(False, "UIE: metrics of each class of prompts that have answers, too (default: of all)")
    schema_lang: str = option("ch", "with --debug: language of the prompts", choices=LANGUAGES)
    out: str | None = option(None, "write all figures as JSON (default: not written)", metavar="FILE")
    threads: int = option(0, " (default: 0, which is all cores)")
    precision_hint: str = option("f32", "what OpenVINO computes outside INT8", metavar="P", choices=PRECISION_HINTS)


def evaluate(options: EvaluateOptions, screen: Screen) -> dict[str, Any]:
    """Score every contestant; returns (and with `out` writes) the report. Raises QdqError."""
    from qdq.loading.model import load_model
    from qdq.pipeline.run import prepare_torch
    from qdq.tasks.loading import EvaluationSettings, load_evaluation

    check(options)
    # The contestants, and one model whose tokenizer and classes turn the data into feeds for all of them.
    threads = options.threads or available_cores()
    entries: Contestants = {}
    own = Own(options.model_class, options.task) if options.model_class else None
    for what in options.what:
        entries |= contestants(what, threads, options.precision_hint, own)
    prepare_torch(threads)
    named = options.model or model_for(options.what[0])
    with screen.stage("load") as stage:
        loaded = load_model(named, options.task, model_class=options.model_class)
        stage.say(f"{loaded.name}, {loaded.task.name}")
    settings = EvaluationSettings(**values_for(EvaluationSettings, options), required=True)
    if options.sequence > loaded.max_sequence:
        raise ConfigError(
            f"--sequence: {options.sequence} is beyond the {loaded.max_sequence} positions of {loaded.name}"
        )
    if options.debug and loaded.task.name != INFORMATION_EXTRACTION:
        raise ConfigError(f"--debug: is for UIE's prompts, and {loaded.name} is a model for {loaded.task.name}")
    language = language_named(options.schema_lang)
    source = TextSource(options.data, options.text_columns, options.label_column, options.header, options.labels)
    evaluation = load_evaluation(source, loaded, settings, options.samples)
    if not evaluation.labelled and options.predictions is None:
        raise ConfigError(f"no metric: {evaluation.reason}; write predictions with --predictions FILE, or give labels")
    # Scores, one contestant at a time.
    screen.row("data", f"{evaluation.source}, {evaluation.samples} samples")
    for note in evaluation.notes:
        screen.row("", note)
    scores: dict[str, Scores] = {}
    classes: dict[str, dict[str, dict[str, float]]] = {}
    for name, open_runner in entries.items():
        with screen.stage("evaluate") as stage:
            reader = evaluation.read_all(open_runner(), stage.progress)
            scores[name] = reader.scores()
            if options.debug:
                classes[name] = reader.classes(lambda record: kind_of(record.text, record.pair or "", language))
            stage.say(name)
    if options.predictions is not None:
        write_predictions(Path(options.predictions), scores[list(entries)[-1]])
    report = as_json(evaluation, scores)
    for entry in report["contestants"] if options.debug else ():
        entry["classes"] = classes[entry["name"]]
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
        intervals = {metric: interval.as_json() for metric, interval in difference.items()}
        entries.append({"name": name, "metrics": scores[name].values, "difference": intervals})
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
    unit = "points to the first (mse: as it is)" if "mse" in metrics else "points to the first"
    lines = [f"{report['samples']} samples; {unit}, with 95 % bootstrap interval over paired samples"]
    for metric in metrics:
        lines += ["", metric]
        for entry in entries:
            text = f"  {entry['name']:<{width}}  {entry['metrics'][metric]:.4f}"
            if change := entry["difference"].get(metric):
                difference, low, high = change.values()
                digits = 4 if "difference" in change else 2  # of an error, in its own unit
                text += f"  {difference:+6.{digits}f}  [{low:+.{digits}f}, {high:+.{digits}f}]"
            lines.append(text)
    for entry in entries:
        for name, values in entry.get("classes", {}).items():
            said = ", ".join(f"{metric} {value:.4f}" for metric, value in values.items())
            lines += ["", f"{name}  ({entry['name']})", f"  {said}"]
    return "\n".join(lines) + "\n"
