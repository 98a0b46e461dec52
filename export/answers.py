"""End to end: the torch fake-quant module and ONNX Runtime without optimizations must give the task's same answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from export.unoptimized import Array, open_unoptimized, run
from qdq.base.config import choice
from qdq.errors import DataError, ParityError

Execute = Callable[[Mapping[str, Array]], Mapping[str, Array]]  # input name -> array to output name -> array

# The two sum in another order, so a value on a rounding tie gets another code, and one step of a wide residual scale
# spreads: max calibration of all twenty points of a fine-tuned MiniLM flips 2 answers of 96 although every code is
# equal on identical inputs (percentile calibration: 0 of 96). A wrong connection flips far more.
ANSWER_TOLERANCE = 0.02
SIGMAS = 2  # room for chance in a small sample: a true rate of 2 % shows as 4 of 96 every now and then
# Embeddings have no answer that absorbs the flips: equal codes on identical inputs at every point still leave a mean
# cosine of 0.998 (linear+qk) or 0.990 (all twenty points) on all-MiniLM-L6-v2. A wrong connection leaves far less.
MIN_COSINE = 0.95

ANSWERS: Mapping[str, str | None] = {  # task -> what one answer is given for; None: no answers, cosine decides
    "feature-extraction": None,
    "text-classification": "text",
    "next-sentence-prediction": "text",
    "multiple-choice": "text",
    "token-classification": "token",
    "fill-mask": "token",
    "language-modeling": "token",
    "question-answering": "span",
}


@dataclass
class _Tally:
    """Running statistics over texts."""

    unit: str | None
    cosines: list[float] = field(default_factory=list)
    single: list[tuple[float, float]] = field(default_factory=list)  # regression: one logit per text
    equal: int = 0
    answers: int = 0
    max_abs_error: float = 0.0

    def add(self, expected: Mapping[str, Array], actual: Mapping[str, Array]) -> None:
        left, right = (
            np.concatenate([sample[name].ravel() for name in sorted(sample)]) for sample in (expected, actual)
        )
        self.max_abs_error = max(self.max_abs_error, float(np.abs(left - right).max()))
        if left.size == 1:
            self.single.append((float(left[0]), float(right[0])))
            return
        self.cosines.append(_cosine(left, right))
        if self.unit is not None:
            same = np.ones((), bool)
            for name in expected:
                axis = -1 if self.unit != "span" else None
                same = same & (expected[name].argmax(axis=axis) == actual[name].argmax(axis=axis))
            self.equal, self.answers = self.equal + int(same.sum()), self.answers + same.size

    def as_json(self, task: str) -> dict[str, Any]:
        if self.single:  # the cosine of two numbers is their sign, so all texts make one vector
            left, right = np.array(self.single).T
            self.cosines = [_cosine(left, right)]
        return {
            "task": task,
            "max_abs_error": self.max_abs_error,
            "cosine_mean": float(np.mean(self.cosines)),
            "cosine_min": min(self.cosines),
            "answers": self.answers,
            "agreement": self.equal / self.answers if self.answers else None,
        }


def end_to_end_parity(
    reference: Execute,
    model_path: Path,
    batches: Sequence[Mapping[str, Array]],
    task: str,
    tolerance: float = ANSWER_TOLERANCE,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Compare the torch fake-quant module (`reference`) with ONNX Runtime, optimizations off, on whole batches.

    Returns ``{"task", "max_abs_error", "cosine_mean", "cosine_min", "answers", "agreement"}``; padded positions of
    token-level outputs do not count. The answer is the arg max per text, per token, or start and end of a span.

    Raises ParityError when more answers differ than `tolerance` of them plus two standard deviations, or, for a task
    without answers (embeddings, regression), when the mean cosine is below 0.95; ConfigError for an unknown task,
    DataError without texts.
    """
    unit = ANSWERS[choice(task, ANSWERS, "task")]
    if not batches:
        raise DataError("there is no text to compare on; give at least one batch")
    session = open_unoptimized(str(model_path), model_path.parent)
    names = [output.name for output in session.get_outputs()]
    tally = _Tally(unit)
    for done, feeds in enumerate(batches, start=1):
        expected = reference(feeds)
        actual = dict(zip(names, run(session, feeds, names), strict=True))
        _check_outputs(expected, actual)
        for left, right in zip(_texts(expected, feeds, unit), _texts(actual, feeds, unit), strict=True):
            tally.add(left, right)
        if progress is not None:
            progress(done, len(batches))
    report = tally.as_json(task)
    _raise_if_different(report, tolerance)
    return report


def _check_outputs(expected: Mapping[str, Array], actual: Mapping[str, Array]) -> None:
    left, right = ({name: list(value.shape) for name, value in side.items()} for side in (expected, actual))
    if left != right:
        raise ParityError(f"the module returns {left}, the graph {right}; export this module again")
    for who, side in (("the fake-quant module", expected), ("ONNX Runtime", actual)):
        for name, values in side.items():
            if not np.isfinite(values).all():
                raise ParityError(f"output '{name}' of {who} holds NaN or infinity; calibrate and export again")


def _texts(outputs: Mapping[str, Array], feeds: Mapping[str, Array], unit: str | None) -> Iterator[dict[str, Array]]:
    """Outputs of one text at a time in float64, without the padded positions of token-level outputs."""
    mask = feeds["attention_mask"].astype(bool)
    for row in range(len(mask)):
        if not mask[row].any():
            raise DataError(f"text {row} of a batch has no token (its attention_mask is all 0); leave it out")
        yield {
            name: (values[row][mask[row]] if values.ndim == 3 or unit == "span" else values[row]).astype(np.float64)
            for name, values in outputs.items()
        }


def _cosine(left: Array, right: Array) -> float:
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / norms if norms else float(np.array_equal(left, right))


def _raise_if_different(report: Mapping[str, Any], tolerance: float) -> None:
    advice = "export again; point_parity names a point that differs"
    count, agreement = report["answers"], report["agreement"]
    if agreement is not None:
        expected = 1.0 - (tolerance + SIGMAS * math.sqrt(tolerance / count))
        if agreement < expected:
            raise ParityError(
                f"the fake-quant module and ONNX Runtime give the same answer to {agreement:.1%} of {count} (at least "
                f"{expected:.1%} expected); {advice}"
            )
    if agreement is None and not report["cosine_mean"] >= MIN_COSINE:
        raise ParityError(
            f"outputs of the fake-quant module and ONNX Runtime have a mean cosine of {report['cosine_mean']:.5f} "
            f"(at least {MIN_COSINE} expected); {advice}"
        )
