"""Find the columns that hold the text, its pair and the label: the rules, and the answer as it is printed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdq.base.config import nearest
from qdq.errors import ConfigError, DataError

DETECTION_RULES = """\
A source is a file, a folder (all .jsonl .json .tsv .csv .txt .conll files below it, by name), or datasets:NAME[:SPLIT].
Columns, unless named: first a known pair of names, both present (sentence1/sentence2, premise/hypothesis,
question/context, question1/question2, "#1 String"/"#2 String", text/pair, ...); then a known single name (text,
sentence, content, query, question, title, ...); upper and lower case are the same. Otherwise the string column with
the longest mean length over the first 100 rows, with a second one as its pair when that is at least half as long;
columns that look like identifiers, dates or addresses come last. Label: label, labels, class, target, quality,
label_desc, ..., otherwise none. Files must be UTF-8; TSV is split at tabs without quote handling, CSV with it; plain
text holds one text per line, CoNLL files one token per line. The first rows with a text (and a pair) are used, in
file order; rows whose text or pair is empty are skipped and counted."""

# Known names, most specific first; compared without case.
_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "context"),
    ("question1", "question2"),
    ("#1 string", "#2 string"),
    ("text", "pair"),
    ("text", "text_pair"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text_1", "text_2"),
    ("sentence_1", "sentence_2"),
    ("question", "sentence"),  # QNLI
    ("question", "passage"),  # BoolQ
    ("query", "passage"),
    ("query", "title"),
    ("anchor", "positive"),
    ("prompt", "content"),  # UIE
)
_SINGLES = ("text", "sentence", "content", "review", "query", "question", "title", "headline", "document", "body")
_LABELS = (
    *("label", "labels", "class", "target", "quality", "gold_label", "is_duplicate", "category", "sentiment"),
    *("label_desc", "label_des", "score", "similarity_score", "similarity"),  # the last three: STS-B and its like
)
SAMPLE_ROWS = 100  # rows looked at for detection; not the limit, so that the limit never changes the columns
_ID_NAME = re.compile(r"(^|[\s_#.-])(id|idx|index|guid|uuid|key|url|uri|date|time|path|file)s?$", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """The columns in use, and how many rows were skipped because their text or pair is empty."""

    text: str
    pair: str | None = None
    label: str | None = None
    skipped: int = 0


def detect_columns(
    sample: Sequence[Mapping[str, Any]], where: str, text_columns: Sequence[str] = (), label_column: str | None = None
) -> Columns:
    """The columns of `sample` that are named, or that DETECTION_RULES finds; `where` names the source in messages.

    Raises DataError when a named column is not there or no column holds text, ConfigError for more than two texts.
    """
    names = list(dict.fromkeys(name for row in sample for name in row))
    named = tuple(text_columns)
    if len(named) > 2:
        raise ConfigError(f"--text-columns names {len(named)} columns ({', '.join(named)}); give one, or two for pairs")
    for name in (*named, *([label_column] if label_column else ())):
        if name not in names:
            raise DataError(f"{where}: no column '{name}'; {nearest(name, names)}")
    label = label_column or _known_label(sample, names, named)
    text = named or _known_text(sample, names) or _longest_text(sample, [n for n in names if n != label])
    if not text:
        raise DataError(f"{where}: no column holds text (columns: {', '.join(names)}); name it: --text-columns")
    return Columns(text[0], text[1] if len(text) > 1 else None, label if label not in text else None)


def _known_text(sample: Sequence[Mapping[str, Any]], names: Iterable[str]) -> tuple[str, ...]:
    present = {name.lower(): name for name in names if any(isinstance(row.get(name), str) for row in sample)}
    for known in (*_PAIRS, *((name,) for name in _SINGLES)):
        if all(name in present for name in known):
            return tuple(present[name] for name in known)
    return ()


def _known_label(sample: Sequence[Mapping[str, Any]], names: Iterable[str], taken: Sequence[str]) -> str | None:
    scalar = (str, int, float)
    present = {n.lower(): n for n in names if n not in taken and any(isinstance(r.get(n), scalar) for r in sample)}
    return next((present[name] for name in _LABELS if name in present), None)


def _longest_text(sample: Sequence[Mapping[str, Any]], names: Iterable[str]) -> tuple[str, ...]:
    """The longest string column, and a second at least half as long that is no identifier."""
    ranked: list[tuple[bool, float, str]] = []
    for name in names:
        values = [value for row in sample if isinstance(value := row.get(name), str)]
        if any(value.strip() for value in values):
            ranked.append((not _is_id(name, values), sum(map(len, values)) / len(values), name))
    ranked.sort(key=lambda item: item[:2], reverse=True)  # stable: the earlier column wins a tie
    if not ranked:
        return ()
    second = ranked[1:2] if len(ranked) > 1 and ranked[1][0] and 2 * ranked[1][1] >= ranked[0][1] else []
    chosen = {name for *_, name in (ranked[0], *second)}
    return tuple(name for name in names if name in chosen)  # text before pair as in the file


def _is_id(name: str, values: Iterable[str]) -> bool:
    """By name, or because no value holds a space or a non-ASCII character, as words and sentences would."""
    return bool(_ID_NAME.search(name)) or not any(" " in v.strip() or not v.isascii() for v in values)
