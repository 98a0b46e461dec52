"""Files with one token and its tag a line (CoNLL and its relatives): find the columns by content, read sentences.

Sentences end at blank lines. The tag may stand behind the token, in front of it, or between further columns; a column
that counts the tokens, comment lines and -DOCSTART- lines are passed over. Of CoNLL-U the tags are the parts of speech
(upos), unless --label-column names another of its columns.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qdq.errors import DataError
from qdq.text.columns import TAG_NAMES, WORD_NAMES, is_known_name, lowered
from qdq.text.lines import Given, Row, shown, text_lines

_TAG = re.compile(r"O|[BIESLUM][-_]\S+", re.IGNORECASE)
_TYPE = re.compile(r"[A-Za-z][\w.-]*|\d{1,3}")  # a tag without prefix (IO), or its number
_TYPES = 40  # more different "tags" than this are words
_DOCUMENT = "-DOCSTART-"
# https://universaldependencies.org/format.html; 3-4 is a token of several words, 8.1 a word that is not in the text
_CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_CONLLU_ID = re.compile(r"\d+(?:[-.]\d+)?")
Cells = tuple[int, list[str]]


@dataclass(frozen=True)
class Layout:
    """Places of token and tag in a line; `tag` -1 is the last column. `tabs`: tabs alone separate columns."""

    word: int
    tag: int
    tabs: bool
    header: bool = False  # the first line names the columns
    counted: bool = False  # lines whose first column is no whole number are none of a word

    def split(self, text: str) -> list[str]:
        """The columns of a line."""
        return _split(text, self.tabs)


def find_layout(path: Path, head: Sequence[tuple[int, str]], given: Given) -> Layout | None:
    """The layout of the first lines, None when they are not tokens with tags.

    Raises DataError when most lines are a token with its tag and one is not, or several columns could be the tag.
    """
    tabs = all("\t" in text for _, text in head if text.strip() and not text.startswith(("#", _DOCUMENT)))
    rows = [(number, _split(text, tabs)) for number, text in head if text.strip()]
    rows = [row for row in rows if not _passed_over(row[1])]
    if len(rows) < 2:
        return None
    if given.header:
        return _stated(rows, given, tabs)
    header = len(rows[0][1]) > 1 and _stated(rows, Given(tuple(rows[0][1]), given.columns), tabs)
    blank = any(not text.strip() for _, text in head[:-1])
    if header and any(_is_tag(cells, header.tag) for _, cells in rows[1:]) and blank:
        return Layout(header.word, header.tag, tabs, header=True)
    return _conllu(rows, given, tabs) or _found(path, rows, tabs, blank)


def read_sentences(path: Path, layout: Layout) -> Iterator[Row]:
    """One row per sentence, with its words and tags; the tag is "" on a line that has the token alone."""
    lines = ((number, layout.split(text)) for number, text in text_lines(path))
    first = True
    for blank, block in itertools.groupby(lines, key=lambda line: not line[1]):
        if blank:
            continue
        rows = [row for row in block if not _passed_over(row[1])]
        if rows and first and layout.header:
            rows = rows[1:]
        first = False
        if layout.counted:
            rows = [row for row in rows if row[1][0].isdecimal()]
        if rows:
            words = [cells[min(layout.word, len(cells) - 1)] for _, cells in rows]
            tags = [_tag_of(cells, layout) for _, cells in rows]
            yield Row(f"{path}, line {rows[0][0]}", {"text": join_words(words), "words": words, "tags": tags})


def join_words(tokens: Iterable[str]) -> str:
    """Sentence of `tokens`; character-tagged text (Chinese) is joined without spaces."""
    words = list(tokens)
    single = sum(len(word) == 1 and not word.isascii() for word in words)
    return ("" if 2 * single > len(words) else " ").join(words)


def _split(text: str, tabs: bool) -> list[str]:
    if not text.strip():
        return []
    if tabs:
        return [cell.strip() for cell in text.rstrip().split("\t")]
    cells = text.split()
    return ["", *cells] if len(cells) == 1 and text[0].isspace() else cells  # a token that is itself a space


def _passed_over(cells: Sequence[str]) -> bool:
    """True for -DOCSTART- and for comments: a line that begins with # and holds no tag."""
    if cells[0] == _DOCUMENT:
        return True
    return cells[0].startswith("#") and not (len(cells) > 1 and _TAG.fullmatch(cells[-1]))


def _is_tag(cells: Sequence[str], place: int) -> bool:
    return len(cells) > 1 and -len(cells) <= place < len(cells) and bool(_TAG.fullmatch(cells[place]))


def _tag_of(cells: Sequence[str], layout: Layout) -> str:
    if len(cells) < 2 or layout.tag >= len(cells):
        return ""
    return cells[layout.tag]


def _stated(rows: Sequence[Cells], given: Given, tabs: bool) -> Layout | None:
    """The layout by names of columns, None when they do not name a token and its tag."""
    names = [lowered(name) for name in given.header]
    wanted = [lowered(name) for name in given.columns]
    word = next((n for n, name in enumerate(names) if name in WORD_NAMES), None)
    tag = next((n for n, name in enumerate(names) if name in wanted and n != word), None)
    if tag is None:
        tag = next((n for n, name in enumerate(names) if name in TAG_NAMES), None)
    if word is None or tag is None or any(len(cells) not in (1, len(names)) for _, cells in rows):
        return None
    return Layout(word, tag, tabs)


def _conllu(rows: Sequence[Cells], given: Given, tabs: bool) -> Layout | None:
    """The layout of CoNLL-U, None for other lines and where a column holds tags of entities."""
    width = len(_CONLLU)
    if not tabs or not all(len(cells) == width and _CONLLU_ID.fullmatch(cells[0]) for _, cells in rows):
        return None
    if any(all(_is_tag(cells, place) for _, cells in rows) for place in range(2, width)):
        return None
    named = [name for name in map(lowered, given.columns) if name in _CONLLU]
    layout = _stated(rows, Given(_CONLLU, tuple(named or ["upos"])), tabs)
    return None if layout is None else replace(layout, counted=True)


def _found(path: Path, rows: Sequence[Cells], tabs: bool, blank: bool) -> Layout | None:
    """The layout by what the columns hold."""
    full = [cells for _, cells in rows if len(cells) > 1]
    width = min(map(len, full), default=0)
    if width < 2:
        return None
    same = all(len(cells) == width for cells in full)
    counted = 1 if same and width > 2 and _counts([cells[0] for cells in full]) else 0
    places = [n for n in range(counted, width) if all(_is_tag(cells, n) for cells in full)] if same else []
    tagged = all(_is_tag(cells, -1) for cells in full)
    if 5 * len(full) >= 4 * len(rows):
        if counted and places:  # GermEval: outer and nested tags; the outer ones decide
            return Layout(1 if places[0] != 1 else 2, places[0], tabs)
        if tagged:
            return Layout(0, -1, tabs)
        if places:
            return Layout(counted if places[0] != counted else counted + 1, places[0], tabs)
        if same and blank and _types(full, -1) and not _types(full, 0) and not any(map(is_known_name, full[0])):
            return Layout(counted, width - 1, tabs)
    _refuse_nearly(path, rows, width)
    return None


def _counts(values: Sequence[str]) -> bool:
    """True for a column that numbers the tokens of each sentence."""
    return values[0] in ("0", "1") and all(value.isdecimal() for value in values)


def _types(rows: Sequence[Sequence[str]], place: int) -> bool:
    """True for a column of tags without prefix: O or 0 often, and few different types."""
    values = [row[place] for row in rows]
    outside = sum(value in ("O", "0") for value in values)
    fits = len(values) > 3 and all(_TYPE.fullmatch(value) for value in values)
    return fits and 3 * outside >= len(values) and len(set(values)) <= _TYPES


def _refuse_nearly(path: Path, rows: Sequence[Cells], width: int) -> None:
    """Raise DataError when half of the lines and more are a token with its tag, and name one that is not."""
    strict = [any(_is_tag(cells, n) for n in (0, width - 1, -1)) for _, cells in rows]
    if len(rows) < 5 or 2 * sum(strict) < len(rows) or all(strict):
        return
    number, _ = rows[strict.index(False)]
    around = [row for row in rows if abs(row[0] - number) < 2]
    raise DataError(
        f"{path}, line {number}: looks like one token and its tag a line, but this line holds no tag (O, B-…, I-…):"
        f"{shown(around)}correct it, or name the file's columns with --header, such as --header token,pos,tag"
    )
