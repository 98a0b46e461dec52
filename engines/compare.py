"""accuracy.json: distance of an engine's outputs and answers from the FP32 model's, on the same batches.

Compared per text:

* cosine over the text's output vector: one row of ``sentence_embedding`` or of [batch, classes] ``logits``; all
  non-padded positions, flattened, of a token-level output; start and end logits of the non-padded positions together
  for question answering. With two classes the cosine is a weak statistic: adding the same amount to both logits moves
  it without changing any answer, and it is near 1 for most pairs of confident answers. Read the agreement there.
* of texts with a single number (one logit) instead of the cosine, which would be its sign, Pearson's and Spearman's
  correlation over the texts;
* of start and end probabilities (prompts) the cosine is that of their logits;
* errors over the same elements (padded positions never count);
* agreement: share of equal answers. One answer per text is the arg max of its logits, per non-padded token the arg max
  there, for question answering start and end position together, for a prompt all tokens that are marked as start or
  end, and for a multi-label classifier one answer per class is whether its logit is above the cut (0 by default).
  Feature extraction and regression have no answers.

Batches are streamed; only running sums and single numbers are kept, and float64 copies exist for one text at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.metrics import ErrorSum, Share, Vector, cosine
from engines.types import Runner
from qdq.base.choices import INFORMATION_EXTRACTION, MULTI_LABEL, REGRESSION
from qdq.base.config import choice
from qdq.base.correlation import pearson, spearman
from qdq.base.types import Feeds, Outputs, Progress
from qdq.errors import DataError, ParityError

# Task -> what one answer is given for; None: the task gives no answers.
ANSWER_FOR: dict[str, str | None] = {
    "feature-extraction": None,
    "text-classification": "text",
    "next-sentence-prediction": "text",
    "multiple-choice": "text",
    "token-classification": "token",
    "fill-mask": "token",
    "language-modeling": "token",
    MULTI_LABEL: "label",
    REGRESSION: None,
    "question-answering": "span",
    INFORMATION_EXTRACTION: "prompt",
}
ANSWER_OUTPUTS = {
    None: (),
    "text": ("logits",),
    "token": ("logits",),
    "label": ("logits",),
    "span": ("start_logits", "end_logits"),
    "prompt": ("start_prob", "end_prob"),
}
LABELLED = ("text-classification", "next-sentence-prediction", "multiple-choice")  # one label per text
LOGITS = ("logits", "start_logits", "end_logits")
TOKEN_LEVEL = ("question-answering", INFORMATION_EXTRACTION)  # tasks whose outputs [B, S] have a value per token
MARK = 0.5  # probability above which a token starts or ends an answer to a prompt
LEAST = 1e-6  # a probability's distance from 0 and 1 where its logit is taken, about FP32's rounding

Sample = dict[str, Vector]  # one text's outputs without padding, in float64


@dataclass(frozen=True)
class Reading:
    """A task, with the logits above which a class of a multi-label model counts: one for all, or one each.

    `token_level` names the outputs that have a value per token; None tells them by their form, see above.
    """

    task: str
    cuts: tuple[float, ...] = ()
    token_level: tuple[str, ...] | None = None


def compare(
    reference: Runner,
    tested: Runner,
    batches: Sequence[Feeds],
    task: str | Reading,
    labels: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run both on every batch and return the accuracy.json object.

    `labels`: one class index per text, in the order of the batches; they give ``metric`` (accuracy in [0, 1] of both
    sides, and the drop in points) for tasks with one label per text, else ``metric_reason`` says why not. `progress`
    is called after each batch. Raises ConfigError for an unknown task, DataError for missing text or unusable labels,
    ParityError when names or shapes of outputs differ or a value is NaN or Inf.
    """
    reading = Reading(task) if isinstance(task, str) else task
    comparison = Comparison(reading.task, labels, reading.cuts, token_level=reading.token_level)
    _check_texts(batches, labels)
    for done, feeds in enumerate(batches, start=1):
        comparison.add(feeds, reference(feeds), tested(feeds))
        if progress is not None:
            progress(done, len(batches))
    return comparison.as_json()


@dataclass
class Comparison:
    """Running statistics over batches. Raises ConfigError for an unknown task."""

    task: str
    labels: Sequence[int] | None = None  # one class index per text
    cuts: Sequence[float] = ()  # of a multi-label model, see `Reading`
    sides: tuple[str, str] = ("the FP32 model", "the engine")  # the reference and the other one, for messages
    token_level: Collection[str] | None = None  # see `Reading`
    _batches: int = 0
    _texts: int = 0
    _cosines: list[float] = field(default_factory=list)
    _numbers: list[tuple[float, float]] = field(default_factory=list)  # of texts with one number
    _errors: dict[str, ErrorSum] = field(default_factory=dict)
    _agreement: Share = field(default_factory=Share)
    _correct: tuple[Share, Share] = field(default_factory=lambda: (Share(), Share()))  # reference, tested

    def __post_init__(self) -> None:
        choice(self.task, ANSWER_FOR, "task")

    def add(self, feeds: Feeds, expected: Outputs, actual: Outputs) -> None:
        """Include the outputs of both sides for one batch. Raises as `compare` does."""
        where, mask = f"batch {self._batches}", feeds.get("attention_mask")
        self._batches += 1
        self._check_interface(expected, actual, len(feeds["input_ids"]), where)
        _check_answers(expected, self.task, where)
        # Not zipped over lists: one text of a [batch, sequence, vocabulary] output is copied at a time.
        named = self.token_level
        if named is None:
            named = [name for name, v in expected.items() if v.ndim == 3 or self.task in TOKEN_LEVEL]
        texts = (_texts(outputs, mask, named, where) for outputs in (expected, actual))
        for pair in zip(*texts, strict=True):
            for sample, who in zip(pair, self.sides, strict=True):
                _check_finite(sample, who, where)
            self._add_text(*pair)

    def _check_interface(self, expected: Outputs, actual: Outputs, texts: int, where: str) -> None:
        reference, tested = self.sides
        if not expected:
            raise ParityError(f"{where}: {reference} returns no outputs; export and build again")
        if expected.keys() != actual.keys():
            raise ParityError(
                f"{where}: {tested} returns {sorted(actual)}, {reference} {sorted(expected)}; "
                "they are not the same model, export and build again"
            )
        for name, values in expected.items():
            if values.shape != actual[name].shape:
                raise ParityError(
                    f"{where}: output '{name}' has shape {list(actual[name].shape)} from {tested} and "
                    f"{list(values.shape)} from {reference}; export and build again"
                )
            if values.shape[:1] != (texts,):
                raise ParityError(
                    f"{where}: output '{name}' has shape {list(values.shape)} for {texts} texts; export again"
                )

    def _add_text(self, expected: Sample, actual: Sample) -> None:
        position = self._texts
        self._texts += 1
        sides = _joined(expected), _joined(actual)
        if ANSWER_FOR[self.task] == "prompt":  # most are near 0, where only logits have a direction
            sides = _logit(sides[0]), _logit(sides[1])
        if sides[0].size == 1:
            self._numbers.append((float(sides[0][0]), float(sides[1][0])))
        else:
            self._cosines.append(cosine(*sides))
        for name, values in expected.items():
            self._errors.setdefault(name, ErrorSum()).add(values, actual[name])
        answers = _answers(expected, self.task, self.cuts), _answers(actual, self.task, self.cuts)
        if answers[0] is None or answers[1] is None:
            return
        self._agreement.add(np.all(answers[0] == answers[1], axis=0))
        if self.labels is not None and self.task in LABELLED:
            if position == 0:  # all of them now: a bad last label must not cost a whole run
                _check_labels(self.labels, expected["logits"].size)
            for share, answer in zip(self._correct, answers, strict=True):
                share.add(np.all(answer == self.labels[position], axis=0))

    def as_json(self) -> dict[str, Any]:
        """The accuracy.json object of everything added so far, one text at least."""
        outputs = {name: errors.as_json() for name, errors in self._errors.items()}
        total = ErrorSum.merged(self._errors.values()).as_json()
        logits = ErrorSum.merged(errors for name, errors in self._errors.items() if name in LOGITS)
        metric, reason = self._metric()
        return {
            "task": self.task,
            "samples": self._texts,
            "cosine_mean": float(np.mean(self._cosines)) if self._cosines else None,
            "cosine_min": min(self._cosines, default=None),
            **self._correlations(),
            "max_abs_error": total["max_abs_error"],
            "mean_abs_error": total["mean_abs_error"],
            "logit_mse": logits.as_json()["mse"] if logits.elements else None,
            "outputs": outputs,
            "agreement": self._agreement.value(),
            "agreement_of": self._agreement.of,
            "agreement_unit": ANSWER_FOR[self.task] if self._agreement.of else None,
            "metric": metric,
            "metric_reason": reason,
        }

    def _correlations(self) -> dict[str, float | None]:
        """Correlations over texts with one number each; None where either side is the same for all of them."""
        if not self._numbers:
            return {}
        left, right = np.array(self._numbers).T
        defined = left.std() > 0 and right.std() > 0
        return {
            "pearson": pearson(left, right) if defined else None,
            "spearman": spearman(left, right) if defined else None,
        }

    def _metric(self) -> tuple[dict[str, Any] | None, str | None]:
        """The metric, or the reason why there is none."""
        if self.labels is None:
            return None, "no labels were given"
        if self.task not in LABELLED:
            return None, f"labels are not used for {self.task}"
        fp32, int8 = (share.value() for share in self._correct)
        if fp32 is None or int8 is None:
            return None, "the model has a single logit (regression), so there is no accuracy"
        return {"name": "accuracy", "fp32": fp32, "int8": int8, "drop_points": (fp32 - int8) * 100}, None


def _check_texts(batches: Sequence[Feeds], labels: Sequence[int] | None) -> None:
    texts = sum(len(feeds["input_ids"]) for feeds in batches)
    if not texts:
        raise DataError("there is no text to compare the engine with the FP32 model on; give at least one text")
    if labels is not None and len(labels) != texts:
        raise DataError(f"{len(labels)} labels for {texts} texts; give one label per text, in the same order")
    for index, feeds in enumerate(batches):
        mask = feeds.get("attention_mask")
        if mask is not None and not mask.any(axis=tuple(range(1, mask.ndim))).all():
            raise DataError(f"batch {index} holds a text without tokens (its attention_mask is all 0); leave it out")


def _check_answers(outputs: Outputs, task: str, where: str) -> None:
    for name in ANSWER_OUTPUTS[ANSWER_FOR[task]]:
        if name not in outputs:
            raise ParityError(f"{where}: {task} needs output '{name}', found {sorted(outputs)}; check the task")


def _texts(outputs: Outputs, mask: NDArray[Any] | None, token_level: Collection[str], where: str) -> Iterator[Sample]:
    """One sample per text. Outputs named in `token_level` lose padded positions."""
    for name, values in outputs.items():
        if name in token_level and mask is not None and values.shape[:2] != mask.shape:
            raise ParityError(
                f"{where}: output '{name}' has shape {list(values.shape)}, which does not start with batch and "
                f"sequence of attention_mask, {list(mask.shape)}; export the model again"
            )
    keep = None if mask is None else mask.astype(bool)
    for index in range(len(next(iter(outputs.values())))):
        yield {
            name: (values[index][keep[index]] if name in token_level and keep is not None else values[index]).astype(
                np.float64
            )
            for name, values in outputs.items()
        }


def _check_finite(sample: Sample, who: str, where: str) -> None:
    for name, values in sample.items():
        if not np.isfinite(values).all():
            raise ParityError(
                f"{where}: output '{name}' of {who} holds NaN or Inf; look for a scale of 0 or an overflow in FP16, "
                "then calibrate and build again"
            )


def _joined(sample: Sample) -> Vector:
    """One text's output vector: all outputs flattened, in the order of their names."""
    return np.concatenate([sample[name].ravel() for name in sorted(sample)])


def _logit(probabilities: Vector) -> Vector:
    inside = probabilities.clip(LEAST, 1 - LEAST)
    return np.asarray(np.log(inside / (1 - inside)))


def _answers(sample: Sample, task: str, cuts: Sequence[float]) -> NDArray[np.int64] | None:
    """Answers of one text, [parts, answers]: a span has two parts that must both be equal, everything else one."""
    unit = ANSWER_FOR[task]
    if unit == "span":
        return np.array([[sample["start_logits"].argmax()], [sample["end_logits"].argmax()]])
    if unit == "prompt":
        return np.concatenate([sample[name] > MARK for name in ANSWER_OUTPUTS[unit]])[:, np.newaxis].astype(np.int64)
    if unit == "label":
        return np.atleast_1d(sample["logits"] > np.array(cuts or (0.0,)))[np.newaxis].astype(np.int64)
    if unit is None or sample["logits"].shape[-1] == 1:
        return None
    return np.atleast_1d(sample["logits"].argmax(axis=-1))[np.newaxis]


def _check_labels(labels: Sequence[int], classes: int) -> None:
    for position, label in enumerate(labels):
        if not 0 <= label < classes:
            raise DataError(
                f"label {label} of text {position} is out of range; the model has classes 0 to {classes - 1}, "
                "name the column that holds them"
            )


def headline(report: Mapping[str, Any]) -> str:
    """Describe how close the outputs are: the cosine, or of single numbers their correlation."""
    if report["cosine_mean"] is not None:
        return f"cosine {report['cosine_mean']:.4f} mean, {report['cosine_min']:.4f} worst"
    if report["pearson"] is None:
        return "no correlation, since one side gives every text the same number"
    return f"Pearson {report['pearson']:.4f}, Spearman {report['spearman']:.4f}"


def relate(report: Mapping[str, Any]) -> str:
    """Describe an accuracy.json object in two to five lines of at most 80 columns."""
    texts = f"{report['samples']} text{'s' if report['samples'] != 1 else ''}"
    name, _, values = headline(report).partition(" ")
    lines = [
        f"{name} to FP32 {values}, over {texts}" if name != "no" else f"{headline(report)}, over {texts}",
        f"outputs differ by {report['mean_abs_error']:.3g} on average, {report['max_abs_error']:.3g} at most",
    ]
    if report["agreement"] is not None:
        count, unit = report["agreement_of"], report["agreement_unit"]
        lines.append(f"same answer as FP32 for {report['agreement']:.2%} of {count} {unit}{'s' if count != 1 else ''}")
    if report["metric"] is not None:
        metric = report["metric"]
        change = f"{abs(metric['drop_points']):.2f} points {'lower' if metric['drop_points'] >= 0 else 'higher'}"
        lines.append(f"{metric['name']} {metric['fp32']:.4f} in FP32, {metric['int8']:.4f} in the engine: {change}")
    if activation := report.get("activation"):
        lines.append(f"the engine returns logits; config.json asks for {activation} behind them")
    return "\n".join(lines) + "\n"
