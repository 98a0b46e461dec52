"""The batches a benchmark feeds: checked to be real text of the promised shape, and described in the report.

Two kinds of batch say what an engine does: full rows, in which every token is real, and texts of their own lengths. The
latter come padded to the full sequence or cropped to the longest text of the batch; whoever cannot leave padding out by
itself is at its best with cropped ones. All-equal rows would let an engine (and its caches) see one sentence only, and
hide what padding costs, so they are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdq.base.types import Feeds
from qdq.errors import ConfigError


def check_workload(workload: Sequence[Feeds], batch: int, sequence: int) -> None:
    """Every input is [batch, sequence] (multiple choice: [batch, choices, sequence]) and no batch repeats one row.

    Raises ConfigError naming the batch and the input.
    """
    if not workload:
        raise ConfigError("the benchmark has no batches to feed; give it at least one batch of tokenized text")
    for index, feeds in enumerate(workload):
        if "input_ids" not in feeds:
            raise ConfigError(f"benchmark batch {index} has no 'input_ids' (inputs: {', '.join(sorted(feeds))})")
        for name, array in feeds.items():
            if array.ndim not in (2, 3) or array.shape[0] != batch or array.shape[-1] != sequence or not array.size:
                raise ConfigError(
                    f"benchmark batch {index}: input '{name}' has shape {list(array.shape)}, expected [{batch}, "
                    f"{sequence}] or [{batch}, choices, {sequence}]; pad and truncate the text to batch and sequence"
                )
        _check_variety(feeds, index)


def _check_variety(feeds: Feeds, index: int) -> None:
    rows = feeds["input_ids"].reshape(-1, feeds["input_ids"].shape[-1])
    one_row_repeated = len(rows) > 1 and bool((rows == rows[0]).all())
    one_token_repeated = rows.size > 1 and bool((rows == rows[0, 0]).all())
    if one_row_repeated or one_token_repeated:
        what = "token" if one_token_repeated else "row"
        raise ConfigError(f"benchmark batch {index} repeats one {what} of input_ids; feed different real texts")


def describe_workload(workload: Sequence[Feeds]) -> dict[str, Any]:
    """Token statistics of a checked workload: real (not padding) tokens per row, the longest row of a batch on average,
    and the share that is padding.
    """
    lengths = np.concatenate([_lengths(feeds) for feeds in workload])
    width = workload[0]["input_ids"].shape[-1]
    return {
        "batches": len(workload),
        "mean_tokens": float(lengths.mean()),
        "min_tokens": int(lengths.min()),
        "max_tokens": int(lengths.max()),
        "mean_longest": float(np.mean([_lengths(feeds).max() for feeds in workload])),
        "padding_share": float(1 - lengths.mean() / width),
    }


def cropped(feeds: Feeds) -> Feeds:
    """The batch without the columns that are padding in every row, on either side; the same without a mask or padding.

    >>> mask = np.array([[1, 1, 0, 0], [1, 0, 0, 0]])
    >>> cropped({"input_ids": 7 * mask, "attention_mask": mask})["input_ids"].tolist()
    [[7, 7], [7, 0]]
    """
    mask = feeds.get("attention_mask")
    if mask is None or not mask.any():
        return feeds
    used = np.flatnonzero(mask.any(axis=tuple(range(mask.ndim - 1))))
    return {name: np.ascontiguousarray(array[..., used[0] : used[-1] + 1]) for name, array in feeds.items()}


def _lengths(feeds: Feeds) -> NDArray[np.intp]:
    """Real tokens of every row of a batch."""
    mask = feeds.get("attention_mask", np.ones_like(feeds["input_ids"]))
    lengths: NDArray[np.intp] = (mask != 0).sum(axis=-1).reshape(-1)
    return lengths
