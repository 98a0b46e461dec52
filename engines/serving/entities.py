"""Entities of a text with their characters: every word has the class of its first token."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.serving.form import TextForm
from engines.serving.tokens import Tokens
from qdq.base.tags import entities


def found_entities(form: TextForm, tokens: Tokens, shares: NDArray[Any]) -> list[dict[str, Any]]:
    """Entities in order, ``{"entity", "score", "word", "start", "end"}``; `shares` are probabilities [tokens, classes].

    The score is the mean over the words. A model whose classes are no tags of entities gets an entry per word.
    """
    words = _words(tokens)
    classes = [int(shares[word["first"]].argmax()) for word in words]
    scores = [float(shares[word["first"], tag]) for word, tag in zip(words, classes, strict=True)]
    names = [form.labels[tag] if form.labels else str(tag) for tag in classes]
    spans = entities(names) if form.entities else [(name, place, place) for place, name in enumerate(names)]
    text = tokens.text.one
    found = []
    for kind, first, last in spans:
        start, end = words[first]["start"], words[last]["end"]
        score = round(float(np.mean(scores[first : last + 1])), 6)
        found.append({"entity": kind, "score": score, "word": text[start:end], "start": start, "end": end})
    return found


def _words(tokens: Tokens) -> list[dict[str, int]]:
    """Words as the tokenizer splits them: their first token, and their characters without the space before them."""
    found: dict[int, dict[str, int]] = {}
    text, encoding = tokens.text.one, tokens.encoding
    for place, (word, (start, end)) in enumerate(zip(encoding.word_ids, encoding.offsets, strict=True)):
        if word is None or start == end:
            continue
        while start < end and text[start].isspace():
            start += 1
        entry = found.setdefault(word, {"first": place, "start": start, "end": end})
        entry["end"] = max(entry["end"], end)
    return list(found.values())
