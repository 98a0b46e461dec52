"""Rows whose text is not in one column, brought to text columns: CLUE, tagged sentences, question answering."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from qdq.errors import DataError
from qdq.text.columns import TAG_NAMES, WORD_NAMES
from qdq.text.files import Row, join_words

_SPACED_TAG = re.compile(r"O|[BIESLUM][-_]\S+|\d{1,3}")  # as a cell of several tags holds them
_ADJACENT = re.compile(r"['\"]\s+['\"]")  # numpy's items; to Python neighbouring strings are one
_NUMPY_ITEM = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"|([^\s,'\"\[\]]+)")
_LABEL_NAMES = ("label_desc", "label_des")  # tnews and iflytek
_IDS = ("id", "query_id", "idx", "guid")


def known_layout(row: Row, label_column: str | None = None) -> Row:
    """`row` with its text in string columns; rows of no known layout come back as they are.

    * a list of words (tokens, words) with or without tags (`label_column`, ner_tags, tags): ``text`` beside it, and
      ``words`` and ``tags`` as text;
    * CLUE's csl (abst, keyword): the keywords, joined, as ``sentence1`` and the abstract as ``sentence2``;
    * CLUE's cluewsc2020 (text, target): the text with ``_`` around the noun and ``[ ]`` around the pronoun.

    Raises DataError for a target that is not at the position its row gives.
    """
    values = row.values
    if (sentence := _sentence(row, label_column)) is not None:
        return sentence
    if isinstance(values.get("keyword"), list) and isinstance(values.get("abst"), str):
        keywords = " ".join(map(str, values["keyword"]))
        return Row(row.where, {**values, "sentence1": keywords, "sentence2": values["abst"]}, row.names)
    if isinstance(values.get("target"), Mapping) and "span1_text" in values["target"]:
        # CLUE's list of labels begins with true, where a boolean would be 1
        names = {**row.names, "label": row.names.get("label") or ("true", "false")}
        return Row(row.where, {**values, "text": _marked(row), "target": None}, names)
    return row


def _sentence(row: Row, label_column: str | None) -> Row | None:
    """`row` with ``text``, ``words`` and ``tags``, where it holds a list of words; None where it holds none.

    Lists may be written as text, as a table has to: JSON's or Python's form, numpy's, or the items with spaces between.
    """
    values, lower = row.values, {str(name).lower(): str(name) for name in row.values}
    lists = [lower[name] for name in ("text", "sentence") if isinstance(values.get(lower.get(name, "")), list)]
    word = next((lower[name] for name in WORD_NAMES if name in lower), lists[0] if lists else None)
    named = label_column if label_column in values else None
    tag = named or next((lower[name] for name in TAG_NAMES if name in lower and lower[name] != word), None)
    words = None if word is None else as_list(values[word])
    tags = None if tag is None else as_list(values[tag])
    if words is None and tag is not None and tags is None:
        spaced = word or lower.get("text") or lower.get("sentence")
        words, tags = _spaced(values.get(spaced), values[tag]) if spaced else (None, None)
    if not words or not all(isinstance(item, str) for item in words):
        return None
    if tags is not None and (len(tags) != len(words) or any(isinstance(item, (list, dict)) for item in tags)):
        if tag not in ("label", "labels"):  # those may be classes of the whole text
            raise DataError(
                f"{row.where}: {len(words)} words and {len(tags)} tags in '{tag}'; give each word one tag, a name or a "
                "number"
            )
        tags = None
    names = row.names.get(str(tag), ())
    text = values["text"] if isinstance(values.get("text"), str) else join_words(words)
    kept = {name: value for name, value in values.items() if tags is None or name != tag}
    found = [class_name(item, names) for item in tags or ()]
    return Row(row.where, {**kept, "text": text, "words": words, "tags": found}, {**row.names, "tags": names})


def class_name(value: Any, names: Sequence[str] = ()) -> str:
    """A class as text: its name where it is a number of `names`, 3 for 3.0, "" for none."""
    if value is None:
        return ""
    text = str(value).strip()
    number = whole(text)
    if number is None or isinstance(value, bool):
        return text
    return names[number] if number < len(names) else str(number)


def whole(text: str) -> int | None:
    """The whole number that `text` is, also as 3.0 (pandas, once a value was missing); None for anything else."""
    match = re.fullmatch(r"\+?(\d{1,9})(?:\.0*)?", text)
    return int(match[1]) if match else None


def as_list(value: Any) -> list[Any] | None:
    """A list, or one written as text in JSON's, Python's or numpy's form; None for anything else."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if not isinstance(value, str) or not (value.strip().startswith("[") and value.strip().endswith("]")):
        return None
    text = value.strip()
    for parse in () if _ADJACENT.search(text) else (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings(action="ignore"):  # of escapes that Python would read otherwise
                found = parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(found, list):
            return found
    return [first or second or third for first, second, third in _NUMPY_ITEM.findall(text[1:-1])]


def _spaced(words: Any, tags: Any) -> tuple[list[str] | None, list[str] | None]:
    """Words and tags out of two cells with as many items each, (None, None) for cells that are something else."""
    if not isinstance(words, str) or not isinstance(tags, str):
        return None, None
    items, found = words.split(), tags.replace(",", " ").split()
    fits = len(items) == len(found) and len(items) > 1 and all(_SPACED_TAG.fullmatch(tag) for tag in found)
    return (items, found) if fits else (None, None)


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
    if isinstance(values.get("words"), list) and isinstance(values.get("tags"), list):
        found |= {"words": tuple(values["words"]), "tags": tuple(values["tags"])}
        if classes := row.names.get("tags"):
            found["classes"] = classes
    if values.get("answers") is not None:
        found["answers"] = _answers(row)
    identity = next((values[key] for key in _IDS if isinstance(values.get(key), (str, int))), None)
    return found | ({} if identity is None else {"id": str(identity)})


def _answers(row: Row) -> tuple[tuple[str, int], ...] | None:
    """SQuAD's list of {text, answer_start}, or the hub's {text: […], answer_start: […]}; None for another column."""
    answers = row.values["answers"]
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text", []), answers.get("answer_start", [])
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise DataError(f"{row.where}: its answers need as many answer_start as text, in two lists; correct it")
        answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(answers, list) or any(not isinstance(answer, Mapping) for answer in answers):
        return None
    try:
        return tuple((str(answer["text"]), int(answer.get("answer_start", -1))) for answer in answers)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{row.where}: an answer lacks its text or answer_start ({error!r}); correct it") from None
