"""Answers of each task: the engine's outputs of one text to labels, scores, entities, a span or an embedding."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.serving.batches import Row
from engines.serving.entities import found_entities
from engines.serving.fault import Fault
from engines.serving.form import QA, UIE, TextForm
from engines.serving.spans import best_span, prompted
from engines.serving.tokens import Tokens
from qdq.base.activations import ACTIVATIONS, softmax

STRING, FLOAT, INT = "TYPE_STRING", "TYPE_FP32", "TYPE_INT32"
Answer = dict[str, Any]
TOP = 5  # entries of the vocabulary that a masked or next token is answered with
Function = Callable[[TextForm, Sequence[Tokens], Row], Answer]


@dataclass(frozen=True)
class Output:
    """One output of the text model: its Triton type, and its dims without the batch."""

    name: str
    kind: str
    dims: tuple[int, ...]
    on_request: bool = False  # large: sent to those only who name it among some outputs


COUNTS = (Output("TOKENS", INT, (1,)), Output("CUT", INT, (1,)))


def outputs_of(form: TextForm) -> tuple[Output, ...]:
    """Outputs of a form's task, in order."""
    # A label with the shares of all classes; values per token are large
    classes = len(form.labels) or -1
    label = (Output("LABEL", STRING, (1,)), Output("SCORE", FLOAT, (1,)), Output("PROBABILITIES", FLOAT, (classes,)))
    logits, by_token = Output("LOGITS", FLOAT, (classes,)), Output("LOGITS", FLOAT, (-1, -1), on_request=True)
    if form.task == "text-classification" and form.head == "scores":
        own: tuple[Output, ...] = (Output("SCORE", FLOAT, (-1,)), Output("LOGITS", FLOAT, (-1,)))
    elif form.task == "text-classification" and form.head == "multi-label":
        own = (Output("LABELS", STRING, (1,)), label[2], logits)
    elif form.task in ("text-classification", "next-sentence-prediction"):
        own = (*label, logits)
    elif form.task == "token-classification":
        own = (Output("ENTITIES", STRING, (1,)), by_token)
    elif form.task == QA:
        places = (Output("START", INT, (1,)), Output("END", INT, (1,)))
        ends = tuple(Output(name.upper(), FLOAT, (-1,), on_request=True) for name in form.outputs)
        own = (Output("ANSWER", STRING, (1,)), Output("SCORE", FLOAT, (1,)), *places, *ends)
    elif form.task == UIE:
        ends = tuple(Output(name.upper(), FLOAT, (-1,), on_request=True) for name in form.outputs)
        own = (Output("SPANS", STRING, (1,)), *ends)
    elif form.task == "multiple-choice":
        several = (Output("PROBABILITIES", FLOAT, (-1,)), Output("LOGITS", FLOAT, (-1,)))
        own = (Output("CHOICE", INT, (1,)), Output("SCORE", FLOAT, (1,)), *several)
    elif form.task == "feature-extraction":
        own = (Output("EMBEDDING", FLOAT, (-1,)),)
    else:
        own = (Output("PREDICTIONS", STRING, (1,)), by_token)
    return (*own, *COUNTS)


def runs_of(sample: Sequence[Tokens]) -> list[Sequence[Tokens]]:
    """Runs of the engine for a sample: one for itself, or one for each window of a context that is read in several."""
    return [(sample[0], *sample[1:]), *((window,) for window in sample[0].more)]


def answer(
    form: TextForm, sample: Sequence[Tokens], rows: Sequence[Row], dimensions: int | None, large: bool
) -> Answer:
    """Values of every output of one sample, out of the engine's outputs of its `runs_of`; the large ones only where
    they are asked for. Of several windows it is the answer of the best one.
    """
    row = rows[0]
    if len(rows) > 1:
        windows = list(zip(runs_of(sample), rows, strict=True))
        (best,), row = max(windows, key=lambda one: best_span(one[0][0], *(one[1][name] for name in form.outputs)).sum)
        found = _FUNCTIONS[form.task](form, [best], row)
    else:
        found = _FUNCTIONS[form.task](form, sample, row)
    if dimensions is not None:
        found["EMBEDDING"] = _unit(found["EMBEDDING"][:dimensions], form.normalized)
    if large:
        found |= {output.name: row[output.name.lower()] for output in outputs_of(form) if output.on_request}
    return {
        **found,
        "TOKENS": sum(len(one) for run in runs_of(sample) for one in run),
        "CUT": sum(text.cut for text in sample),
    }


def check_dimensions(form: TextForm, dimensions: int) -> None:
    """Raise Fault unless the model was trained for embeddings of this length."""
    if form.task != "feature-extraction":
        raise Fault(f"the parameter dimensions is for embeddings, this model does {form.task}; leave it out")
    if dimensions not in form.dimensions:
        trained = ", ".join(map(str, form.dimensions))
        says = f"it was trained for {trained}" if trained else "it was not trained for shorter embeddings"
        raise Fault(f"dimensions {dimensions}: {says}; choose one of those, or leave the parameter out")


def _classification(form: TextForm, sample: Sequence[Tokens], row: Row) -> Answer:
    logits = row["logits"].reshape(-1)
    if form.head == "scores":
        return {"SCORE": ACTIVATIONS[form.activation](logits.astype(np.float64)), "LOGITS": logits}
    several = form.head == "multi-label"
    shares = ACTIVATIONS["sigmoid"](logits.astype(np.float64)) if several else softmax(logits)
    found: Answer = {"PROBABILITIES": shares, "LOGITS": logits}
    if several:
        above = np.flatnonzero(shares > np.array(form.thresholds))
        listed = [{"label": form.labels[index], "score": round(float(shares[index]), 6)} for index in above]
        return {"LABELS": json.dumps(listed, ensure_ascii=False), **found}
    best = int(logits.argmax())
    return {"LABEL": form.labels[best] if form.labels else str(best), "SCORE": shares[best], **found}


def _tagging(form: TextForm, sample: Sequence[Tokens], row: Row) -> Answer:
    return {"ENTITIES": json.dumps(found_entities(form, sample[0], softmax(row["logits"])), ensure_ascii=False)}


def _extraction(form: TextForm, sample: Sequence[Tokens], row: Row) -> Answer:
    start, end = (row[name] for name in form.outputs)
    span = best_span(sample[0], start, end)
    text = sample[0].text.two or ""
    return {"ANSWER": text[span.first : span.last], "SCORE": span.score, "START": span.first, "END": span.last}


def _prompted(form: TextForm, sample: Sequence[Tokens], row: Row) -> Answer:
    start, end = (row[name] for name in form.outputs)
    return {"SPANS": json.dumps(prompted(sample[0], start, end), ensure_ascii=False)}


def _choice(form: TextForm, sample: Sequence[Tokens], row: Row) -> Answer:
    logits = row["logits"].reshape(-1)
    shares, best = softmax(logits), int(logits.argmax())
    return {"CHOICE": best, "SCORE": shares[best], "PROBABILITIES": shares, "LOGITS": logits}


def _embedding(form: TextForm, sample: Sequence[Tokens], row: Row) -> Answer:
    values = row[form.outputs[0]]
    if form.pooled:
        return {"EMBEDDING": values}
    return {"EMBEDDING": _unit(values.mean(axis=0), form.normalized)}


def _vocabulary(form: TextForm, sample: Sequence[Tokens], row: Row) -> Answer:
    """Likeliest tokens of every masked place, or of the place behind a text for a language model."""
    tokens = sample[0]
    places = tokens.places(form.mask) if form.task == "fill-mask" else [len(tokens) - 1]
    found = []
    for place in places:
        shares = softmax(row["logits"][place])
        best = np.argsort(-shares)[:TOP]
        found.append([{"token": tokens.spell(int(index)), "score": round(float(shares[index]), 6)} for index in best])
    return {"PREDICTIONS": json.dumps(found, ensure_ascii=False)}


def _unit(values: NDArray[Any], normalized: bool) -> NDArray[Any]:
    return values / max(float(np.linalg.norm(values)), 1e-12) if normalized else values


_FUNCTIONS: Mapping[str, Function] = {
    "text-classification": _classification,
    "next-sentence-prediction": _classification,
    "token-classification": _tagging,
    QA: _extraction,
    UIE: _prompted,
    "multiple-choice": _choice,
    "feature-extraction": _embedding,
    "fill-mask": _vocabulary,
    "language-modeling": _vocabulary,
}
