"""Stage 7, verify: the engine against the model as its own library runs it; accuracy.json, disagreements.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import write_json
from qdq.base.screen import Stage
from qdq.loading.reference import Reference, open_reference, require_equal, require_same_tokens
from qdq.loading.runner import TorchRunner
from qdq.pipeline.run import Run
from qdq.pipeline.stages.build import open_engine
from qdq.pipeline.stages.load import evaluation_for
from qdq.tasks.closeness import compared
from qdq.tasks.disagreement import KeptEmbeddings, disagreements, moved

if TYPE_CHECKING:
    from qdq.loading.model import LoadedModel
    from qdq.tasks.evaluation import Evaluation, Scores

DIFFERING = "disagreements.json"
TOKENIZED = 8  # texts whose ids are compared with the library's own


def verify(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 7: outputs, agreement and, with labels, the task metric of both sides; accuracy.json out.

    Raises ParityError when our floating-point model is not what the model's own library computes.
    """
    from engines.compare import Reading, compare, headline
    from qdq.tasks.heads import head_of_model

    opened = open_engine(run)  # first: a target that does not run here says so at once
    loaded = run.reference
    evaluation = evaluation_for(run, loaded)
    library = open_reference(run.folder, loaded.task.name, run.options.allow_pickle, run.options.model_class)
    difference = _read_alike(run, loaded, evaluation, library)
    sides = KeptEmbeddings(library), KeptEmbeddings(opened)
    floating, engine = (evaluation.reader(side) for side in sides)
    reading = Reading(evaluation.compared_as, evaluation.cuts, loaded.token_level)
    report = compare(floating, engine, evaluation.feeds, reading, progress=stage.progress)
    report |= {"source": run.evaluation.source, "notes": list(evaluation.notes)}
    report |= {"reference": {"library": library.library, "difference": difference}}
    scores = floating.scores(), engine.scores()
    report |= task_metrics(*scores, evaluation.reason)
    if evaluation.compared_as == "regression" and (asked := head_of_model(loaded.model).asked):
        report["activation"] = asked
    for note in evaluation.notes:
        run.screen.row("", note)
    stage.say(f"{headline(report)}, over {run.evaluation.source}")
    differing = {**disagreements(evaluation, *scores), "moved": moved(evaluation, *sides)}
    written = write_json(run.target / "accuracy.json", report)
    return written, write_json(run.target / DIFFERING, differing)


def _read_alike(run: Run, loaded: LoadedModel, evaluation: Evaluation, library: Reference) -> float:
    """Largest difference of the floating-point model here to `library` on a batch, as a share of the largest output.

    Raises ParityError beyond rounding, and for a text whose token ids differ.
    """
    from qdq.text.encode import tokenize

    records = run.evaluation.records[:TOKENIZED]
    ids = [tokenize(loaded.tokenizer, record, loaded.inputs, run.options.sequence)["input_ids"] for record in records]
    texts = [(record.text, record.pair, row) for record, row in zip(records, ids, strict=True)]
    require_same_tokens(library, texts, run.options.sequence)
    feeds = {name: array[:TOKENIZED] for name, array in evaluation.feeds[0].items()}
    ours = TorchRunner(loaded.module(), run.options.threads)(feeds)
    return require_equal(library(feeds), ours, library.library, run.name)


def task_metrics(floating: Scores, engine: Scores, reason: str) -> dict[str, Any]:
    """accuracy.json's ``metric`` (the one that decides), ``metrics`` and ``metric_reason`` (why there is none)."""
    if not floating.metrics:
        return {"metric": None, "metrics": {}, "metric_reason": reason}
    both, main = compared(floating, engine), engine.main
    return {"metric": {"name": main, **both[main]}, "metrics": both, "metric_reason": None}
