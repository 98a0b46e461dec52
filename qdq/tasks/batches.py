"""Batches of tokenized rows, sorted by length so that little is padding, and a runner's outputs row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qdq.base.types import Feeds, Outputs
from qdq.errors import ParityError
from qdq.text.encode import Feed, TokenRow, longest, pad

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RowOutputs = dict[str, NDArray[np.float64]]
Runner = Callable[[Feeds], Outputs]  # a torch model or any engine


@dataclass(frozen=True)
class Batches:
    """Feeds, and the rows in each of them.

    Attributes:
        feeds: int64 [b, S] (or [b, choices, S]) arrays by input name, padded to the longest row of each.
        order: for every feed, the rows in it.
    """

    feeds: tuple[Feed, ...]
    order: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(map(len, self.order))


def batched(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[TokenRow]],
    inputs: Sequence[str],
    batch: int,
    choices: bool = False,
) -> Batches:
    """Batches of `batch` rows; a row is one token sequence, or several (`choices`)."""
    by_length = sorted(range(len(rows)), key=lambda index: longest(rows[index]))
    feeds, order = [], []
    for start in range(0, len(rows), batch):
        chosen = by_length[start : start + batch]
        flat = [row for index in chosen for row in rows[index]]
        feed = pad(tokenizer, flat, inputs, longest(flat))
        if choices:
            feed = {name: array.reshape(len(chosen), -1, array.shape[-1]) for name, array in feed.items()}
        feeds.append(feed)
        order.append(tuple(chosen))
    return Batches(tuple(feeds), tuple(order))


def split(outputs: Outputs, feed: Feeds, token_level: Sequence[str], where: str) -> list[RowOutputs]:
    """Outputs of a batch, row by row in float64; those named `token_level` without padding.

    Raises ParityError naming the output that holds NaN or infinity, or does not have a row per text.
    """
    mask = feed["attention_mask"].astype(bool)
    for name, array in outputs.items():
        if array.shape[:1] != mask.shape[:1]:
            raise ParityError(
                f"{where}: output '{name}' has shape {list(array.shape)} for {len(mask)} texts; export again"
            )
        if not np.isfinite(array).all():
            raise ParityError(
                f"{where}: output '{name}' holds NaN or infinity, so nothing can be scored; look for a scale of 0 or "
                "an overflow in FP16, then calibrate and build again"
            )
    return [
        {
            name: np.asarray(array[row][mask[row]] if name in token_level else array[row], dtype=np.float64)
            for name, array in outputs.items()
        }
        for row in range(len(mask))
    ]
