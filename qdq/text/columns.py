"""Find the columns that hold the text, its pair and the label: the rules, and the answer as it is printed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdq.base.config import nearest
from qdq.errors import ConfigError, DataError

DETECTION_RULES = """\
A source is a file, a folder (all .jsonl .json .tsv .csv .txt .conll .parquet .arrow files below it, by name), or
datasets:NAME[:SPLIT].
Columns, unless named: first a known pair of names, both present (sentence1/sentence2, premise/hypothesis,
question/context, question1/question2, "#1 String"/"#2 String", text/pair, ...); then a known single name (text,
sentence, content, query, question, title, ...); upper and lower case are the same. Otherwise the string column with
the longest mean length over the first 100 rows, with a second one as its pair when that is at least half as long;
columns that look like identifiers, dates or addresses come last. Label: label, labels, class, target, quality,
label_desc, ..., otherwise none; for a multi-label model also one 0/1 column per class, named as the model names it.
Files must be UTF-8. A table is split at the tab, comma, semicolon or bar that makes all its first rows equally long;
its first line names the columns, unless --header does. Plain text holds one text per line; files with one token and
its tag a line (CoNLL) are known by their tags. The first rows with a text (and a pair) are used, in file order; rows
whose text or pair is empty are skipped and counted."""

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
# Columns of a file with one token a line, and of rows that hold lists of tokens and tags
WORD_NAMES = ("token", "tokens", "word", "words", "form")
TAG_NAMES = ("ner_tags", "ner_tag", "ner", "tags", "tag", "word_labels", "labels", "label", "bio", "entity")
SAMPLE_ROWS = 100  # rows looked at for detection; not the limit, so that the limit never changes the columns
_ID_NAME = re.compile(r"(^|[\s_#.-])(id|idx|index|guid|uuid|key|url|uri|date|time|path|file)s?$", re.IGNORECASE)


_KNOWN = frozenset((*itertools.chain.from_iterable(_PAIRS), *_SINGLES, *_LABELS, *WORD_NAMES, *TAG_NAMES))


def lowered(name: str) -> str:
    """A name as it is compared: case and outer spaces do not count."""
    return name.strip().lower()


def is_known_name(cell: str) -> bool:
    """True for what files call a column of text, pair, label, tag or identifier."""
    return lowered(cell) in _KNOWN or (bool(_ID_NAME.search(cell.strip())) and len(cell.split()) < 3)


@dataclass(frozen=True)
class Columns:
    """The columns in use, and how many rows were skipped because their text or pair is empty.

    `flags` are the label columns where there is one per class, as --label-column names them.
    """

    text: str
    pair: str | None = None
    label: str | None = None
    skipped: int = 0
    flags: tuple[str, ...] = ()


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
    flags = label_names(label_column, names)
    for name in (*named, *flags):
        if name not in names:
            raise DataError(f"{where}: no column '{name}'; {nearest(name, names)}")
    label = flags[0] if len(flags) == 1 else None if flags else _known_label(sample, names, named)
    text = named or _known_text(sample, names) or _longest_text(sample, [n for n in names if n not in (label, *flags)])
    if not text:
        raise DataError(
            f"{where}: no column holds text (columns: {', '.join(names)}); name it: --text-columns. The first row is "
            f"{_row_text(sample[0])}"
        )
    pair = text[1] if len(text) > 1 else None
    return Columns(text[0], pair, label if label not in text else None, flags=flags if len(flags) > 1 else ())


def label_names(label_column: str | None, names: Collection[str]) -> tuple[str, ...]:
    """The columns that --label-column names: one, or with commas several, where no column is called so itself."""
    if not label_column:
        return ()
    return (label_column,) if label_column in names else tuple(part.strip() for part in label_column.split(","))


def _row_text(row: Mapping[str, Any]) -> str:
    text = ", ".join(f"{name}: {value!r}" for name, value in row.items())
    return text if len(text) <= 200 else f"{text[:199]}…"


def _known_text(sample: Sequence[Mapping[str, Any]], names: Iterable[str]) -> tuple[str, ...]:
    present = {name.lower(): name for name in names if any(isinstance(row.get(name), str) for row in sample)}
    for known in (*_PAIRS, *((name,) for name in _SINGLES)):
        if all(name in present for name in known):
            return tuple(present[name] for name in known)
    return ()


def _known_label(sample: Sequence[Mapping[str, Any]], names: Iterable[str], taken: Sequence[str]) -> str | None:
    def holds(value: Any) -> bool:  # one class, or a list of them
        return isinstance(value, (str, int, float)) or (
            isinstance(value, list) and all(isinstance(item, (str, int, float)) for item in value)
        )

    present = {n.lower(): n for n in names if n not in taken and any(holds(row.get(n)) for row in sample)}
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
