"""Models that take text: which inputs they have, a row of text as a request, and outputs as an answer.

The names are those of the repositories that `engines.triton` writes: docs/triton.md lists them by task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.client.protocol import STRING, Array, Client, ModelInfo
from qdq.errors import ConfigError, ServeError

TEXT, TEXT_PAIR, QUESTION, PROMPT, CONTEXT = "TEXT", "TEXT_PAIR", "QUESTION", "PROMPT", "CONTEXT"
CHOICES = "CHOICES"
LARGE = ("LOGITS", "_PROB")  # ends of names of outputs as large as the text, which are asked for by name only
JSON_OUTPUTS = ("LABELS", "ENTITIES", "SPANS", "PREDICTIONS")  # strings that hold a JSON list
LIST_OUTPUTS = ("PROBABILITIES", "EMBEDDING")  # lists even when they hold one number


@dataclass(frozen=True)
class TextRow:
    """One text; with its pair, a question or prompt with its context; or with the choices of multiple choice."""

    text: str
    pair: str | None = None
    choices: tuple[str, ...] = ()


def takes_text(model: ModelInfo) -> bool:
    """True when every input is a string."""
    return bool(model.inputs) and all(tensor.datatype == STRING for tensor in model.inputs)


def small_outputs(model: ModelInfo) -> tuple[str, ...]:
    """Outputs that an answer is made of: all but logits, and those too where a model has nothing else."""
    return tuple(name for name in model.output_names if not name.upper().endswith(LARGE)) or model.output_names


def choose_model(client: Client, name: str | None) -> ModelInfo:
    """The model called `name`; without one, the only ready model, or the only one of them that takes text.

    Raises ConfigError when there is nothing to choose or no single one, Refused when the server does not know it.
    """
    if name is not None:
        return client.describe(name)
    ready = client.ready_models()
    if not ready:
        raise ConfigError("the server has no model that is ready; its log says why, or name one with --model")
    found = [client.describe(model) for model in ready]
    chosen = found if len(found) == 1 else [model for model in found if takes_text(model)]
    if len(chosen) != 1:
        raise ConfigError(f"the server has several models; name one with --model: {', '.join(ready)}")
    return chosen[0]


def feeds_of(model: ModelInfo, row: TextRow) -> dict[str, Array]:
    """The inputs of one request for one row: arrays of str [1, 1], of choices [1, N].

    Raises ConfigError for a model that takes no text, and for a row with a part too many or too few for it.
    """
    if not takes_text(model):
        raise ConfigError(
            f"model '{model.name}' takes {', '.join(tensor.name for tensor in model.inputs)} instead of text; deploy "
            "it without --raw-inputs, so that the server has the tokenizer"
        )
    names = {tensor.name for tensor in model.inputs}
    parts = _parts(model.name, names, row)
    return {name: np.array([texts], dtype=object) for name, texts in parts.items()}


def _parts(model: str, names: set[str], row: TextRow) -> dict[str, Sequence[str]]:
    """Texts by input."""
    if CONTEXT in names:
        asked = QUESTION if QUESTION in names else PROMPT
        if row.pair is None:
            raise ConfigError(f"model '{model}' answers a {asked.lower()} about a context; give it with --pair")
        return {asked: [row.text], CONTEXT: [row.pair]}
    if CHOICES in names:
        if len(row.choices) < 2:
            raise ConfigError(f"model '{model}' chooses among answers; give at least two with --choice")
        return {TEXT: [row.text], CHOICES: row.choices}
    if row.choices:
        raise ConfigError(f"model '{model}' has no choices to make; leave --choice out")
    if row.pair is None:
        return {TEXT: [row.text]}
    if TEXT_PAIR not in names:
        raise ConfigError(f"model '{model}' takes one text, not a pair; leave --pair out")
    return {TEXT: [row.text], TEXT_PAIR: [row.pair]}


def answer_of(outputs: Mapping[str, Array]) -> dict[str, Any]:
    """Outputs of a request of one row as plain values under their lower-case names, JSON strings read.

    Raises ServeError when an output is not what its name says.
    """
    return {name.lower(): _plain(name, array) for name, array in outputs.items()}


def _plain(name: str, array: Array) -> Any:
    values = array[0].tolist() if array.ndim else array.tolist()
    if name in LIST_OUTPUTS or name.endswith(LARGE):
        return values
    single = values[0] if isinstance(values, list) and len(values) == 1 else values
    if name not in JSON_OUTPUTS:
        return single
    try:
        return json.loads(single)
    except (TypeError, ValueError) as error:
        raise ServeError(f"output {name} holds no JSON: {single!r}") from error


def answer_text(answer: Mapping[str, Any]) -> str:
    """The answer in a line or a few, as a person reads it."""
    score = f"  {answer['score']:.4f}" if isinstance(answer.get("score"), float) else ""
    cut = f"  ({answer['cut']} tokens cut away)" if answer.get("cut") else ""
    # Lists
    if "entities" in answer:
        lines = [f"{e['entity']:<8} {e['score']:.4f}  {e['start']}-{e['end']}  {e['word']}" for e in answer["entities"]]
        return "\n".join(lines or ["no entities"]) + cut
    if "spans" in answer:
        places = [f"{s['start']}-{s['end']}" if "start" in s else "chosen" for s in answer["spans"]]
        lines = [f"{s['text']}  {s['probability']:.4f}  {at}" for s, at in zip(answer["spans"], places, strict=True)]
        return "\n".join(lines or ["no answer"]) + cut
    if "labels" in answer:
        return (", ".join(f"{one['label']}  {one['score']:.4f}" for one in answer["labels"]) or "no class") + cut
    # One thing with its score
    if "answer" in answer:
        return f"{answer['answer'] or 'no answer'}{score}  {answer['start']}-{answer['end']}{cut}"
    if "predictions" in answer:
        places = [", ".join(f"{one['token']}  {one['score']:.4f}" for one in place) for place in answer["predictions"]]
        return "\n".join(places or ["no masked token"]) + cut
    if "embedding" in answer:
        vector = answer["embedding"]
        head = ", ".join(f"{value:.4f}" for value in vector[:4])
        return f"[{head}{', …' if len(vector) > 4 else ''}]  {len(vector)} dimensions{cut}"
    named = answer.get("label", answer.get("choice"))
    if named is not None or score:
        return f"{'' if named is None else named}{score}{cut}".strip()
    return ", ".join(f"{name} {value}" for name, value in answer.items())
