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
    from engines.compare import Reading, compare

    reader = evaluation.reader(runner)
    if reference is None:
        outputs = tuple(reader(feed) for feed in evaluation.feeds)
        return Scored(reader.scores(), outputs, {})
    expected = iter(reference.outputs)
    reading = Reading(evaluation.compared_as, evaluation.cuts)
    report = compare(lambda _: next(expected), reader, evaluation.feeds, reading)
    found = {"output_mse": report["logit_mse"], "agreement": report["agreement"]}
    return Scored(reader.scores(), (), {name: value for name, value in found.items() if value is not None})


def compared(floating: Scores, quantized: Scores) -> dict[str, Any]:
    """Every metric of both sides with the drop in points and its 95 % interval (paired bootstrap).

    Of an error, which has a unit of its own, the rise.
    """
    found = {}
    for name, interval in quantized.difference(floating).items():
        sides = {"fp32": floating.values[name], "int8": quantized.values[name]}
        if interval.error:
            change: dict[str, Any] = {"rise": interval.difference, "rise_interval": [interval.low, interval.high]}
        else:
            drop = [-interval.high, -interval.low]
            change = {"drop_points": -interval.difference, "drop_interval": drop}
        found[name] = {**sides, **change}
    return found
