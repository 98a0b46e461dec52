"""Pieces of a batch that run side by side: in order, or sorted by length and cut to their own longest text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdq.base.packing import COLUMNS_STEP

MASK = "attention_mask"
LEAST_TOKENS = 256  # of a piece among twice as many as threads; measured on short sentences, see docs/performance.md
PIECE_TOKENS = 1280  # of a batch that is cut: the activations of one block then stay near a core's own cache


@dataclass(frozen=True)
class Piece:
    """Some rows of a batch [B, S] or [B, N, S], up to a column."""

    rows: slice | NDArray[np.intp]
    columns: int
    tokens: int  # what it costs, to share pieces evenly

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """These rows and columns of an input."""
        return np.ascontiguousarray(array[self.rows][..., : self.columns])


def filled(mask: NDArray[Any]) -> float:
    """Share of real tokens in a batch, 0 to 1."""
    return np.count_nonzero(mask) / max(1, mask.size)


def equal_pieces(shape: tuple[int, ...], rows: int) -> Sequence[Piece]:
    """A batch in its order, `rows` at a time."""
    tokens = rows * int(np.prod(shape[1:]))
    return [Piece(slice(start, start + rows), shape[-1], tokens) for start in range(0, shape[0], max(1, rows))]


def sorted_pieces(mask: NDArray[Any], threads: int) -> Sequence[Piece]:
    """A batch sorted by length, longest first, in twice as many pieces as threads, more of at most PIECE_TOKENS, or as
    many as threads where those would have less than LEAST_TOKENS.

    `mask`: [B, S] or [B, N, S]. Each piece ends with its longest text; one without tokens counts as full, because a
    packed graph computes what attention to nothing but padding gives.
    """
    columns = mask.shape[-1]
    real = mask.reshape(-1, columns) != 0
    lengths = np.where(real.any(axis=1), columns - np.argmax(real[:, ::-1], axis=1), columns)
    per_row = lengths.reshape(len(mask), -1)
    order = np.argsort(-per_row.max(axis=1), kind="stable")
    # Few tokens: one piece per thread, as even as texts allow; a call costs more than finer cuts save.
    if (total := per_row.sum()) < 2 * threads * LEAST_TOKENS:
        behind = np.cumsum(per_row.sum(axis=1)[order])
        parts = np.split(order, np.searchsorted(behind, total * np.arange(1, threads) / threads) + 1)
    else:  # as many rows in each, the longest of which fits
        count, longest = 2 * threads, int(per_row.sum(axis=1).max())
        while count < len(mask) and -(-len(mask) // count) * longest > PIECE_TOKENS:
            count += threads
        parts = np.array_split(order, min(count, len(mask)))
    pieces = []
    for rows in (part for part in parts if len(part)):
        end = min(columns, -(-int(per_row[rows].max()) // COLUMNS_STEP) * COLUMNS_STEP)
        pieces.append(Piece(rows, end, int(per_row[rows].sum())))
    return pieces


def piece_of(shape: tuple[int, ...], threads: int) -> int:
    """Rows of the pieces a batch of `shape` is cut into: the most that share it evenly among `threads` and hold at
    most PIECE_TOKENS tokens; the whole batch when no size does.
    """
    batch, tokens = shape[0], int(np.prod(shape[1:]))
    fitting = [rows for rows in range(1, batch + 1) if batch % (rows * threads) == 0 and rows * tokens <= PIECE_TOKENS]
    return max(fitting, default=batch) if threads > 1 else batch
