"""A runner on labelled data beside the floating-point model: metrics, and how close the outputs are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qdq.tasks.batches import Runner
from qdq.tasks.evaluation import Evaluation, Scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

Outputs = Mapping[str, "NDArray[Any]"]


@dataclass(frozen=True)
class Scored:
    """Scores, the outputs of every batch, and their closeness to a reference: empty for the reference itself."""

    scores: Scores
    outputs: tuple[Outputs, ...]
    closeness: Mapping[str, float]


def scored(evaluation: Evaluation, runner: Runner, reference: Scored | None = None) -> Scored:
    """Run every batch of `evaluation` through `runner`."""
    kept: list[Outputs] = []

    def keeping(feeds: Any) -> Any:
        outputs = runner(feeds)
        kept.append(outputs)
        return outputs

    scores = evaluation.score(keeping)
    return Scored(scores, tuple(kept), {} if reference is None else closeness(evaluation, reference.outputs, kept))


def closeness(evaluation: Evaluation, expected: tuple[Outputs, ...], actual: list[Outputs]) -> dict[str, float]:
    """``output_mse`` over all outputs, and ``agreement``, the share of equal arg max over the last dimension.

    Padded positions do not count.
    """
    squares = elements = equal = answers = 0.0
    for feeds, reference, found in zip(evaluation.feeds, expected, actual, strict=True):
        real = np.asarray(feeds["attention_mask"], dtype=bool)
        for name, values in reference.items():
            token_level = values.shape[: real.ndim] == real.shape
            ours, theirs = (outputs[name][real] if token_level else outputs[name] for outputs in (found, reference))
            squares += float(np.square(ours.astype(np.float64) - theirs).sum())
            elements += ours.size
            if ours.ndim > 1:
                equal += float((ours.argmax(-1) == theirs.argmax(-1)).sum())
                answers += len(ours)
    agreement = {"agreement": equal / answers} if answers else {}
    return {"output_mse": squares / max(1.0, elements), **agreement}


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
