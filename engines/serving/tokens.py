"""Texts to tokens: checked, encoded, cut where that was asked for, and padded into a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.serving.fault import Fault
from engines.serving.form import ON_CONTEXT, QA, TextForm

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
OFFSETS = ("token-classification", *ON_CONTEXT)  # tasks whose answers are places in the text


@dataclass(frozen=True)
class Text:
    """A text or a pair of texts, and the row of the request that it came in, for messages."""

    one: str
    two: str | None
    where: str
    cut: bool = False  # too many tokens are cut off instead of refused


@dataclass(frozen=True)
class Tokens:
    """One text as the engine reads it.

    `encoding` is the tokenizers package's, with offsets where the task needs them; `cut` counts tokens cut off; `more`
    are the windows behind the first one, of a context that is read in several.
    """

    text: Text
    encoding: Any
    cut: int
    spell: Callable[[int], str | None]  # the token of an id
    more: tuple[Tokens, ...] = ()

    def __len__(self) -> int:
        return len(self.encoding)

    def places(self, token: int | None) -> list[int]:
        """Places of a token."""
        return [place for place, found in enumerate(self.encoding.ids) if found == token]


class Tokenizer:
    """The tokenizer the model was compiled with, as the tokenizers package reads it."""

    def __init__(self, file: Path, form: TextForm) -> None:
        """Raises ValueError when the file cannot be read."""
        from tokenizers import Tokenizer as Fast  # here: checks of a repository need none

        self._form = form
        self._whole, self._cutting = Fast.from_file(str(file)), Fast.from_file(str(file))
        self._whole.no_truncation()
        self._whole.no_padding()
        self._strategy = "only_second" if form.task in ON_CONTEXT else "longest_first"
        self._cutting.enable_truncation(form.sequence, strategy=self._strategy)
        self._cutting.no_padding()
        self._empty = {paired: len(self._whole.encode("", "" if paired else None)) for paired in (False, True)}

    def encode(self, texts: Sequence[Text]) -> list[Tokens | Fault]:
        """Tokens of each text, or its fault: too many characters, no tokens, more tokens than the engine takes."""
        found: list[Tokens | Fault | None] = [self._characters(text) for text in texts]
        fitting = [place for place, fault in enumerate(found) if fault is None]
        for place, encoding in zip(fitting, self._encoded([texts[place] for place in fitting]), strict=True):
            try:
                found[place] = self._checked(texts[place], encoding)
            except Fault as fault:
                found[place] = fault
        return [item for item in found if item is not None]

    def _encoded(self, texts: Sequence[Text]) -> Sequence[Any]:
        pairs = [self._pair(text) for text in texts]
        if self._form.task in OFFSETS:
            return list(self._whole.encode_batch(pairs)) if pairs else []
        return list(self._whole.encode_batch_fast(pairs)) if pairs else []

    def _pair(self, text: Text) -> Any:
        one = self._form.prompt + text.one
        return one if text.two is None else (one, text.two)

    def _characters(self, text: Text) -> Fault | None:
        most = self._form.characters
        for part in (text.one, text.two or ""):
            if len(part) > most:
                return Fault(f"{text.where}: {len(part)} characters, at most {most} are taken; send a part of the text")
        return None

    def _checked(self, text: Text, encoding: Any) -> Tokens:
        """Tokens that fit; cut where the request asks for it. Raises Fault."""
        tokens, most = len(encoding), self._form.sequence
        if tokens == self._empty[text.two is not None]:
            raise Fault(f"{text.where}: the text is empty, or holds nothing that the tokenizer keeps")
        if tokens <= most:
            return Tokens(text, encoding, 0, self._whole.id_to_token)
        if self._form.task == QA and not text.cut:
            return self._in_windows(text, tokens)
        if not text.cut:
            raise Fault(
                f"{text.where}: {tokens} tokens, the engine was built for {most}; send a part of the text, the "
                'parameter truncation "cut", or compile with a longer --sequence'
            )
        try:
            pair = self._pair(text)
            short = self._cutting.encode(*pair) if isinstance(pair, tuple) else self._cutting.encode(pair)
        except Exception as error:  # the tokenizers package raises it as it is for a pair that cannot be cut so
            raise Fault(f"{text.where}: its {tokens} tokens cannot be cut to {most} ({error})") from error
        return Tokens(text, short, tokens - len(short), self._whole.id_to_token)

    def _in_windows(self, text: Text, tokens: int) -> Tokens:
        """A context that is too long, in windows that share a third of the sequence, as `qdq evaluate` reads it.

        Raises Fault for a question that leaves no room for one.
        """
        most, question = self._form.sequence, len(self._whole.encode(self._form.prompt + text.one, ""))
        room = most - question
        if room < 2:
            raise Fault(
                f"{text.where}: the question has {question} tokens, which leaves no room for its context in the {most} "
                "that the engine was built for; ask a shorter one"
            )
        self._cutting.enable_truncation(most, stride=min(most // 3, room - 1), strategy=self._strategy)
        try:
            first = self._cutting.encode(*self._pair(text))
        finally:
            self._cutting.enable_truncation(most, strategy=self._strategy)
        more = tuple(Tokens(text, window, 0, self._whole.id_to_token) for window in first.overflowing)
        return Tokens(text, first, 0, self._whole.id_to_token, more)


def batch(rows: Sequence[Tokens], form: TextForm, width: int) -> dict[str, NDArray[Any]]:
    """The engine's inputs [rows, width], padded on the side and with the ids the tokenizer was trained with."""
    feeds = {}
    for name in form.inputs:
        array = np.full((len(rows), width), form.pad.get(name, 0), np.int64)
        for target, row in zip(array, rows, strict=True):
            target[real(row, width, form)] = _values(row, name, form)
        feeds[name] = array
    return feeds


def real(row: Tokens, width: int, form: TextForm) -> slice:
    """Columns of a padded row that hold its tokens."""
    return slice(width - len(row), width) if form.pad_left else slice(len(row))


def _values(row: Tokens, name: str, form: TextForm) -> Any:
    if name == IDS:
        return row.encoding.ids
    if name == TYPES:
        return row.encoding.type_ids if form.typed else 0
    return 1
