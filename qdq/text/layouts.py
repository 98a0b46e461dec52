"""Rows whose text is not in one column, brought to text columns: CLUE, tagged sentences and spans, questions."""

from __future__ import annotations

import ast
import itertools
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
# Of entities by their characters, as doccano, Prodigy, spaCy and Label Studio export them
_SPAN_COLUMNS = ("entities", "spans", "label", "labels", "ner", "annotations", "privacy_mask")
_SPAN_TEXTS = ("text", "sentence", "content", "source_text", "data")
_SPAN_KEYS = (("start", "start_offset", "begin"), ("end", "end_offset"), ("label", "labels", "type", "entity", "tag"))
_SPAN_OWN = ("text", "value", "word")  # the text of a span, where it is written beside its place
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
# A character of a script without spaces, a word without the punctuation around it, or another character
_PIECE = re.compile(rf"[{_UNSPACED}]|\w(?:[^\s{_UNSPACED}]*\w)?|\S")
_IDS = ("id", "query_id", "idx", "guid")


def known_layout(row: Row, label_column: str | None = None, spans: str | None = None) -> Row:
    """`row` with its text in string columns; rows of no known layout come back as they are.

    * a list of words (tokens, words) with or without tags (`label_column`, ner_tags, tags): ``text`` beside it, and
      ``words`` and ``tags`` as text;
    * entities by their characters in the column `spans` (see `span_column`): ``words`` and ``tags`` (B-, I-, O);
    * CLUE's csl (abst, keyword): the keywords, joined, as ``sentence1`` and the abstract as ``sentence2``;
    * CLUE's cluewsc2020 (text, target): the text with ``_`` around the noun and ``[ ]`` around the pronoun.

    Raises DataError for a target that is not at the position its row gives, and, where `label_column` names them, for
    spans that do not fit their text; others are left alone, as only taggers need them.
    """
    values = row.values
    if spans is not None and isinstance(values.get(spans), list):
        try:
            return _spelled_out(row, spans)
        except DataError:
            if spans == label_column:
                raise
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


def span_column(rows: Sequence[Row], label_column: str | None = None) -> str | None:
    """The column whose lists hold entities by their characters, None without one; an empty list is a text without.

    Where most of them end inside a word they count otherwise: no column then, and a DataError for one that is named.
    """
    for name in (label_column,) if label_column else _SPAN_COLUMNS:
        lists = [(row, row.values[name]) for row in rows if isinstance(row.values.get(name), list)]
        items = [(row, item) for row, found in lists for item in found]
        if not items or not all(_span(item) and _spanned(row) for row, item in items):
            continue
        cut = [row for row, item in items if _ends_inside(row, item)]
        if 2 * len(cut) <= len(items):
            return name
        if label_column:
            raise DataError(
                f"{cut[0].where}: the spans in '{name}' end inside words; give the character behind the last one as "
                "their end, counted in the text as it stands here"
            )
    return None


def _span(item: Any) -> tuple[int, int, str] | None:
    """(first character, end, type) of ``[0, 5, "ORG"]`` or a mapping that names the three; None for anything else."""
    if isinstance(item, Mapping):
        found = [next((item[key] for key in keys if key in item), None) for keys in _SPAN_KEYS]
    else:
        found = list(item) if isinstance(item, (list, tuple)) and len(item) == 3 else [None] * 3
    start, end, kind = found
    kind = kind[0] if isinstance(kind, list) and len(kind) == 1 else kind
    if not isinstance(start, int) or not isinstance(end, int) or isinstance(start, bool) or isinstance(end, bool):
        return None
    return (start, end, kind) if isinstance(kind, str) and kind else None


def _spanned(row: Row) -> str | None:
    """The column of the text that spans are of, None where they may count words."""
    if any(
        isinstance(row.values.get(name), list) and all(isinstance(x, str) for x in row.values[name])
        for name in WORD_NAMES
    ):
        return None
    return next((name for name in _SPAN_TEXTS if isinstance(row.values.get(name), str)), None)


def _ends_inside(row: Row, item: Any) -> bool:
    span, text = _span(item), row.values[str(_spanned(row))]
    around = text[span[1] - 1 : span[1] + 1] if span is not None and span[1] > 0 else ""
    return re.fullmatch(rf"[^\W{_UNSPACED}]{{2}}", around) is not None


def _spelled_out(row: Row, column: str) -> Row:
    """`row` with the words of its text and their tags out of the spans in `column`."""
    name, items = _spanned(row), row.values[column]
    spans = [span for item in items if (span := _span(item)) is not None]
    if name is None or len(spans) != len(items):
        raise DataError(f"{row.where}: '{column}' holds no spans of a text, as in other rows of this file; correct it")
    text = row.values[name]
    _check_spans(row, text, items)
    # Words between the borders of spans
    ends = {start: (end, kind) for start, end, kind in spans}
    words: list[str] = []
    tags: list[str] = []
    borders = sorted({0, len(text), *(place for span in spans for place in span[:2])})
    for start, end in itertools.pairwise(borders):
        pieces, (_, kind) = _PIECE.findall(text[start:end]), ends.get(start, (end, ""))
        words += pieces
        tags += [f"{'I' if place else 'B'}-{kind}" if kind else "O" for place in range(len(pieces))]
    kept = {key: value for key, value in row.values.items() if key != column}
    return Row(row.where, {**kept, "words": words, "tags": tags}, row.names)


def _check_spans(row: Row, text: str, items: Sequence[Any]) -> None:
    """Raise DataError for a span outside its text, one that overlaps another, and one whose own text is another."""
    before = 0
    for item in sorted(items, key=lambda item: _span(item) or (0, 0, "")):
        start, end, kind = _span(item) or (0, 0, "")
        own = next((item[key] for key in _SPAN_OWN if key in item), None) if isinstance(item, Mapping) else None
        if not 0 <= start < end <= len(text):
            fault = f"which has {len(text)} characters"
        elif start < before:
            fault = "which overlaps the one before, and a tagger gives a word one tag"
        elif isinstance(own, str) and own != text[start:end]:
            fault = f"where {text[start:end][:40]!r} stands, not {own[:40]!r}"
        else:
            before = end
            continue
        raise DataError(f"{row.where}: '{kind}' spans {start} to {end} of its text, {fault}; correct it")


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
    if isinstance(values.get("result_list"), list):
        found["spans"] = _prompted(row)
    identity = next((values[key] for key in _IDS if isinstance(values.get(key), (str, int))), None)
    return found | ({} if identity is None else {"id": str(identity)})


def _prompted(row: Row) -> tuple[tuple[int, int, str], ...]:
    """UIE's list of {text, start, end}: the answers to a prompt."""
    try:
        return tuple(
            (int(one["start"]), int(one["end"]), str(one.get("text", ""))) for one in row.values["result_list"]
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{row.where}: an answer of result_list lacks its start or end ({error!r}); correct it"
        ) from None


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
