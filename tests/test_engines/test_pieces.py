"""Pieces of a batch sorted by length."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engines.pieces import LEAST_TOKENS, PIECE_TOKENS, sorted_pieces

LENGTHS = st.lists(st.integers(0, 128), min_size=1, max_size=80)


@given(LENGTHS, st.integers(1, 8))
def test_every_text_is_in_one_piece_that_holds_it(lengths: list[int], threads: int) -> None:
    mask = (np.arange(128) < np.array(lengths)[:, None]).astype(np.int64)
    pieces = sorted_pieces(mask, threads)
    rows = np.concatenate([np.asarray(piece.rows) for piece in pieces])
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    for piece in pieces:
        assert piece.of(mask).sum() == mask[piece.rows].sum()
        assert len(piece.rows) == 1 or len(piece.rows) * mask[piece.rows].sum(axis=1).min() <= PIECE_TOKENS


@given(LENGTHS.filter(lambda lengths: min(lengths) > 0), st.integers(1, 8))
def test_few_tokens_are_one_piece_per_thread(lengths: list[int], threads: int) -> None:
    few = sum(lengths) < 2 * threads * LEAST_TOKENS
    mask = (np.arange(128) < np.array(lengths)[:, None]).astype(np.int64)
    pieces = sorted_pieces(mask, threads)
    if few:
        assert len(pieces) <= threads
        assert max(piece.tokens for piece in pieces) <= sum(lengths) / threads + max(lengths)
    else:
        assert len(pieces) == min(len(lengths), max(2 * threads, len(pieces)))
