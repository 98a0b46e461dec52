"""Texts in and out of the forms that leave padding out: which cell or slot each token has, and back.

`Packing` reads the file packing.json that lies beside a graph of such a form, and a plan built from it. This module
needs numpy and nothing of this project: a copy of it lies beside generated scripts and in Triton repositories.

rows: several texts share a row [rows, sequence]; `segments` number the texts, `positions` are rows of the position
table, `first` [texts] and `cells` [texts, length] are flat indices of cells.
gather: inputs stay [batch, sequence]; `slots` [tokens] are the flat indices of real tokens, and `where`
[batch, sequence] says which of them each place is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = "packing.json"
IDS, MASK = "input_ids", "attention_mask"

Arrays = Mapping[str, NDArray[Any]]


class PackingError(ValueError):
    """A batch that the form cannot take; the message names the text and the way out."""


@dataclass(frozen=True)
class Batch:
    """The inputs of a graph for one batch, and how to read its outputs in the order of the texts."""

    feeds: dict[str, NDArray[Any]]
    shape: tuple[int, ...]  # of the caller's inputs
    real: NDArray[np.bool_]  # [texts, S]
    places: NDArray[np.int64]  # flat index of every real token in the graph's outputs, in the order of `real`
    packing: Packing

    def unpack(self, outputs: Arrays) -> dict[str, NDArray[Any]]:
        """Outputs as of a padded batch, owned by the caller: [batch, ...] per text, [batch, sequence, ...] per token.

        Padded places are zero, and so is everything of a text without a real token.
        """
        return {
            name: self._per_text(array) if self.packing.outputs[name] == "text" else self._per_token(array)
            for name, array in outputs.items()
        }

    def _per_text(self, array: NDArray[Any]) -> NDArray[Any]:
        empty = ~self.real.any(axis=1)
        values = array.reshape(len(self.real), -1).copy() if self.packing.choices else array.copy()
        values[empty] = 0
        return values.reshape(self.shape[:-1]) if self.packing.choices else values

    def _per_token(self, array: NDArray[Any]) -> NDArray[Any]:
        tail = array.shape[2:]
        values = np.zeros((*self.real.shape, *tail), array.dtype)
        values[self.real] = array.reshape(-1, *tail)[self.places]
        return values.reshape(*self.shape, *tail)


@dataclass(frozen=True)
class Packing:
    """The form of a graph's batch and its limits.

    positions: {"offset", "padding"}: a token's row of the position table is its column plus the offset, or, with a
    padding id, counted over the other ids as RoBERTa does; None for a graph without the input. outputs: "text" or
    "token" by name. first: the graph reads first tokens. inputs: names of the graph's. row: most cells of a row; texts:
    most of a batch; rows and tokens: what a whole batch of usual texts fills.
    """

    form: str
    positions: Mapping[str, Any] | None
    outputs: Mapping[str, str]
    choices: bool
    first: bool
    inputs: Sequence[str]
    row: int
    texts: int
    rows: int
    tokens: int

    def summary(self) -> dict[str, Any]:
        """The form, and what a usual batch fills of it."""
        return {"form": self.form, "rows": self.rows, "tokens": self.tokens}

    def ranges(self) -> dict[str, tuple[int, int, int]]:
        """Minimum, usual and maximum size of the axes that a padded batch does not have."""
        if self.form == "rows":
            length = (1, self.row, self.row)
            return {"rows": (1, self.rows, self.texts), "texts": (1, self.texts, self.texts), "length": length}
        grouped = {"texts": (1, self.texts, self.texts)} if self.choices else {}
        return {"tokens": (1, self.tokens, self.texts * self.row), **grouped}

    @classmethod
    def beside(cls, file: Path) -> Packing | None:
        """The form of the graph or plan `file`: what packing.json in its folder says; None for a padded one.

        Raises PackingError when that cannot be read.
        """
        path = file.with_name(FILE)
        return cls.read(path) if path.is_file() else None

    @classmethod
    def read(cls, path: Path) -> Packing:
        """Read packing.json. Raises PackingError when it cannot be read."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{name: found[name] for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PackingError(
                f"{path} cannot be read as the form of a graph ({error!r}); lower the model again"
            ) from error

    def pack(self, feeds: Arrays) -> Batch:
        """Inputs of the graph for a padded batch: ids, mask and token types [batch, sequence], or with choices rank 3.

        Raises PackingError for a batch that does not fit: missing or unequal inputs, too many texts, a text longer than
        a row, a text that begins with padding where its first token is read.
        """
        shape, texts = self._texts(feeds)
        real = texts.pop(MASK) != 0
        if len(real) > self.texts:
            raise PackingError(f"{len(real)} texts; the engine takes {self.texts} at most, cut the batch")
        late = np.flatnonzero(real.any(axis=1) & ~real[:, 0])
        if len(late) and self.first:
            raise PackingError(f"text {late[0]} begins with padding, where its first token is read; pad on the right")
        if self.form == "rows":
            made, places = self._rows(texts, real)
        else:
            made, places = self._gathers(texts, real)
            made |= {name: made[name].reshape(shape) for name in (*texts, MASK)}
        arrays = {name: np.ascontiguousarray(made[name], texts[IDS].dtype) for name in self.inputs}
        return Batch(arrays, shape, real, places, self)

    def _texts(self, feeds: Arrays) -> tuple[tuple[int, ...], dict[str, NDArray[Any]]]:
        """Shape of the inputs, and each of them as [texts, S]."""
        known = {name: feeds[name] for name in (IDS, MASK, "token_type_ids") if name in feeds}
        missing = [name for name in (IDS, MASK, *({"token_type_ids"} & set(self.inputs))) if name not in known]
        if missing:
            raise PackingError(f"the batch lacks input(s) {', '.join(missing)}; encode it for this model")
        shape, rank = known[IDS].shape, 3 if self.choices else 2
        if len(shape) != rank or any(array.shape != shape for array in known.values()) or 0 in shape:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in known.items())
            raise PackingError(f"expected inputs of one shape of rank {rank}; the batch has {shapes}")
        return shape, {name: array.reshape(-1, shape[-1]) for name, array in known.items()}

    def _rows(self, texts: Arrays, real: NDArray[np.bool_]) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
        count, columns = real.shape
        begin, end = real.argmax(axis=1), columns - real[:, ::-1].argmax(axis=1)
        lengths = np.where(real.any(axis=1), end - begin, 0)
        if lengths.max() > self.row:
            longest = int(lengths.argmax())
            raise PackingError(
                f"text {longest} has {lengths[longest]} tokens, a row holds {self.row}; cut it, or compile with a "
                "longer --sequence"
            )
        width = min(self.row, max(int(lengths.sum()), 1))
        starts, rows = first_fit(lengths, width)
        # Every column of a text between its first and last real token has a cell, so that distances are kept.
        text, column = np.nonzero(
            (np.arange(columns) >= begin[:, None]) & (np.arange(columns) < (begin + lengths)[:, None])
        )
        cell = starts[text] + column - begin[text]

        def in_rows(values: NDArray[Any]) -> NDArray[Any]:
            made = np.zeros(rows * width, values.dtype)
            made[cell] = values[text, column]
            return made.reshape(rows, width)

        made = {name: in_rows(array) for name, array in texts.items()}
        made["segments"] = in_rows(np.where(real, np.arange(1, count + 1)[:, None], 0))
        if self.positions is not None:
            made["positions"] = in_rows(self._positions(texts[IDS]))
        made["first"] = starts
        length = max(int(lengths.max()), 1)
        offsets = np.arange(length)
        inside = offsets < lengths[:, None]
        made["cells"] = np.where(inside, starts[:, None] + offsets, 0)
        made[MASK] = inside & np.take_along_axis(real, np.minimum(begin[:, None] + offsets, columns - 1), axis=1)
        return made, cell[real[text, column]]

    def _positions(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """Row of the position table of every place [texts, S]."""
        rule = self.positions or {}
        if rule["padding"] is None:
            return np.broadcast_to(np.arange(ids.shape[1]) + rule["offset"], ids.shape)
        counted = ids != rule["padding"]
        return np.asarray(np.cumsum(counted, axis=1) * counted + rule["padding"])

    def _gathers(self, texts: Arrays, real: NDArray[np.bool_]) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
        if real.shape[1] > self.row:
            raise PackingError(
                f"the batch has {real.shape[1]} columns, the engine takes {self.row}; cut it, or compile with a longer "
                "--sequence"
            )
        flat = np.flatnonzero(real)
        slots = flat if len(flat) else np.zeros(1, np.int64)
        where = np.maximum(np.cumsum(real.reshape(-1)) - 1, 0).reshape(real.shape)
        return {**texts, MASK: real, "slots": slots, "where": where}, flat


def first_fit(lengths: NDArray[np.int64], width: int) -> tuple[NDArray[np.int64], int]:
    """Rows of `width` cells for texts of `lengths`, the longest first, each into the first row that has room.

    Returns the flat index of every text's first cell, 0 for an empty text, and the number of rows, at least 1.
    """
    starts = np.zeros(len(lengths), np.int64)
    used: list[int] = []
    for text in np.argsort(-lengths, kind="stable"):
        length = int(lengths[text])
        if length == 0:
            break
        row = next((row for row, cells in enumerate(used) if cells + length <= width), len(used))
        if row == len(used):
            used.append(0)
        starts[text] = row * width + used[row]
        used[row] += length
    return starts, max(len(used), 1)
