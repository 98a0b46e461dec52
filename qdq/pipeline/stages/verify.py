"""Stage 7, verify: the engine against the floating-point model; accuracy.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import write_json
from qdq.base.screen import Stage
from qdq.load.runner import TorchRunner
from qdq.pipeline.run import Run
from qdq.pipeline.stages.build import open_engine
from qdq.pipeline.stages.load import evaluation_for
from qdq.tasks.closeness import compared

if TYPE_CHECKING:
    from qdq.tasks.evaluation import Scores


def verify(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 7: outputs, agreement and, with labels, the task metric of both sides; accuracy.json out."""
    from engines.compare import compare, headline
    from qdq.tasks.heads import head_of_model

    opened = open_engine(run)  # first: a target that does not run here says so at once
    loaded = run.reference
    evaluation = evaluation_for(run, loaded)
    floating = evaluation.reader(TorchRunner(loaded.module(), run.options.threads))
    engine = evaluation.reader(opened)
    report = compare(floating, engine, evaluation.feeds, evaluation.compared_as, progress=stage.progress)
    report |= {"source": run.evaluation.source, "notes": list(evaluation.notes)}
    report |= task_metrics(floating.scores(), engine.scores(), evaluation.reason)
    if evaluation.compared_as == "regression" and (asked := head_of_model(loaded.model).asked):
        report["activation"] = asked
    stage.say(f"{headline(report)}, over {run.evaluation.source}")
    return (write_json(run.target / "accuracy.json", report),)


def task_metrics(floating: Scores, engine: Scores, reason: str) -> dict[str, Any]:
    """accuracy.json's ``metric`` (the one that decides), ``metrics`` and ``metric_reason`` (why there is none)."""
    if not floating.metrics:
        return {"metric": None, "metrics": {}, "metric_reason": reason}
    both, main = compared(floating, engine), engine.main
    return {"metric": {"name": main, **both[main]}, "metrics": both, "metric_reason": None}
