"""A runner on labelled data beside the floating-point model: metrics, and the closeness of the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qdq.base.types import Outputs
from qdq.tasks.evaluation import Evaluation, Runner, Scores


@dataclass(frozen=True)
class Scored:
    """Scores; of a reference the outputs of every batch, of anything else its closeness to the reference."""

    scores: Scores
    outputs: tuple[Outputs, ...]
    closeness: Mapping[str, float]


def scored(evaluation: Evaluation, runner: Runner, reference: Scored | None = None) -> Scored:
    """Run every batch of `evaluation` through `runner`; closeness is `engines.compare`'s, of logits and answers."""
    from engines.compare import compare

    reader = evaluation.reader(runner)
    if reference is None:
        outputs = tuple(reader(feed) for feed in evaluation.feeds)
        return Scored(reader.scores(), outputs, {})
    expected = iter(reference.outputs)
    report = compare(lambda _: next(expected), reader, evaluation.feeds, evaluation.task)
    found = {"output_mse": report["logit_mse"], "agreement": report["agreement"]}
    return Scored(reader.scores(), (), {name: value for name, value in found.items() if value is not None})


def compared(floating: Scores, quantized: Scores) -> dict[str, Any]:
    """Every metric of both sides with the drop in points and its 95 % interval (paired bootstrap)."""
    return {
        name: {
            "fp32": floating.values[name],
            "int8": quantized.values[name],
            "drop_points": -interval.difference,
            "drop_interval": [-interval.high, -interval.low],
        }
        for name, interval in quantized.difference(floating).items()
    }
