"""Batches of texts of unequal length: in order of arrival or by length bucket, and the padding either costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qdq.base.config import choice
from qdq.errors import ConfigError

WIDTHS = (16, 32, 64, 128, 256, 384, 512)  # tokens; few, because a server merges requests of equal width only
POLICIES = {
    "fixed": "every text padded to the full sequence",
    "longest": "batches in order of arrival, padded to their longest text",
    "bucketed": "a text waits for others of its length bucket, padded to the bucket's width",
}


@dataclass(frozen=True)
class Batch:
    """Texts (by index) that run together, each padded to `width` tokens."""

    texts: tuple[int, ...]
    width: int


def bucket_widths(sequence: int) -> tuple[int, ...]:
    """Return the lengths that texts of up to `sequence` tokens are padded to; the last one is `sequence`."""
    return (*(width for width in WIDTHS if width < sequence), sequence)


def plan(lengths: Sequence[int], batch: int, sequence: int, policy: str, widths: Sequence[int] = ()) -> list[Batch]:
    """Batches of up to `batch` texts with these token counts, bucketed to `widths` (default: `bucket_widths`).

    Raises ConfigError for a text beyond `sequence`.
    """
    choice(policy, POLICIES, "batching policy")
    if not lengths or batch < 1 or max(lengths) > sequence or min(lengths) < 1:
        raise ConfigError(f"cannot batch {len(lengths)} texts by {batch}: give lengths in 1..{sequence}")
    # Texts by the width they are padded to; without buckets all share one group, in order of arrival.
    groups: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        width = (
            next(width for width in widths or bucket_widths(sequence) if length <= width)
            if policy == "bucketed"
            else sequence
        )
        groups.setdefault(width, []).append(index)
    # Every group in batches; with "longest" a batch is only as wide as its longest text.
    planned = []
    for width, texts in sorted(groups.items()):
        for start in range(0, len(texts), batch):
            part = tuple(texts[start : start + batch])
            planned.append(Batch(part, max(lengths[i] for i in part) if policy == "longest" else width))
    return planned


def padding_share(lengths: Sequence[int], batches: Sequence[Batch]) -> float:
    """Return the share of the computed tokens that is padding, in [0, 1)."""
    computed = sum(len(batch.texts) * batch.width for batch in batches)
    return 1 - sum(lengths[index] for batch in batches for index in batch.texts) / computed
