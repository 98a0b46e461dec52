"""Rows whose text is not in one column, brought to text columns: CLUE, tagged sentences, question answering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qdq.errors import DataError
from qdq.text.files import Row, join_words

_WORDS, _TAGS = ("tokens", "words"), ("tags", "ner_tags", "labels")
_LABEL_NAMES = ("label_desc", "label_des")  # tnews and iflytek
_IDS = ("id", "query_id", "idx", "guid")


def known_layout(row: Row) -> Row:
    """`row` with its text in string columns; rows of no known layout come back as they are.

    * a list of words (tokens, words), with or without tags: ``text`` beside it;
    * CLUE's csl (abst, keyword): the keywords, joined, as ``sentence1`` and the abstract as ``sentence2``;
    * CLUE's cluewsc2020 (text, target): the text with ``_`` around the noun and ``[ ]`` around the pronoun.

    Raises DataError for a target that is not at the position its row gives.
    """
    values = row.values
    words = _strings(values, _WORDS)
    if words is not None:
        tags = _strings(values, _TAGS)
        return Row(row.where, {"text": join_words(words), **values, "words": words, "tags": tags or []})
    if isinstance(values.get("keyword"), list) and isinstance(values.get("abst"), str):
        keywords = " ".join(map(str, values["keyword"]))
        return Row(row.where, {**values, "sentence1": keywords, "sentence2": values["abst"]})
    if isinstance(values.get("target"), Mapping) and "span1_text" in values["target"]:
        return Row(row.where, {**values, "text": _marked(row), "target": None})
    return row


def _strings(values: Mapping[str, Any], names: Sequence[str]) -> list[str] | None:
    """The first column of `names` that is a list of strings."""
    for name in names:
        value = values.get(name)
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return value
    return None


def _marked(row: Row) -> str:
    """cluewsc2020's text with both spans marked, as PaddleNLP's and CLUE's baselines do."""
    text, target = str(row.values.get("text", "")), row.values["target"]
    try:
        spans = [(int(target[f"span{n}_index"]), str(target[f"span{n}_text"]), marks) for n, marks in _MARKS]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{row.where}: target lacks a span's index or text ({error!r}); correct it") from None
    for start, span, (before, after) in sorted(spans, reverse=True):  # from the end, so that starts stay right
        if text[start : start + len(span)] != span:
            raise DataError(f"{row.where}: '{span}' does not stand at character {start} of its text; correct it")
        text = f"{text[:start]}{before}{span}{after}{text[start + len(span) :]}"
    return text


_MARKS = ((1, ("_", "_")), (2, ("[", "]")))


def details(row: Row) -> dict[str, Any]:
    """Return the fields of `qdq.text.data.Record` beside text, pair and label, as far as the row has them."""
    values = row.values
    found: dict[str, Any] = {}
    name = next((values[key] for key in _LABEL_NAMES if isinstance(values.get(key), str)), None)
    if name is not None:
        found["label_name"] = name
    if isinstance(values.get("words"), list):
        found |= {"words": tuple(values["words"]), "tags": tuple(values.get("tags") or ())}
    if values.get("answers") is not None:
        found["answers"] = _answers(row)
    identity = next((values[key] for key in _IDS if isinstance(values.get(key), (str, int))), None)
    return found | ({} if identity is None else {"id": str(identity)})


def _answers(row: Row) -> tuple[tuple[str, int], ...] | None:
    """SQuAD's list of {text, answer_start}, or the hub's {text: […], answer_start: […]}; None for another column."""
    answers = row.values["answers"]
    if isinstance(answers, Mapping):
        texts = answers.get("text", [])
        answers = [
            {"text": text, "answer_start": start}
            for text, start in zip(texts, answers.get("answer_start", []), strict=True)
        ]
    if not isinstance(answers, list) or any(not isinstance(answer, Mapping) for answer in answers):
        return None
    try:
        return tuple((str(answer["text"]), int(answer.get("answer_start", -1))) for answer in answers)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{row.where}: an answer lacks its text or answer_start ({error!r}); correct it") from None
