"""Batching policies: every text once, nothing cut, and the padding they cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.bench.buckets import POLICIES, Batch, bucket_widths, padding_share, plan
from qdq.errors import ConfigError


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=60),
    st.integers(1, 12),
    st.sampled_from(sorted(POLICIES)),
)
def test_every_text_is_in_one_batch_that_holds_it(lengths: list[int], batch: int, policy: str) -> None:
    batches = plan(lengths, batch, 200, policy)
    assert sorted(index for group in batches for index in group.texts) == list(range(len(lengths)))
    for group in batches:
        assert 1 <= len(group.texts) <= batch
        assert max(lengths[index] for index in group.texts) <= group.width <= 200
    assert 0 <= padding_share(lengths, batches) < 1


@given(st.lists(st.integers(1, 200), min_size=1, max_size=60), st.integers(1, 12))
def test_fixed_padding_is_never_the_smallest(lengths: list[int], batch: int) -> None:
    share = {policy: padding_share(lengths, plan(lengths, batch, 200, policy)) for policy in POLICIES}
    assert share["fixed"] >= max(share["longest"], share["bucketed"])


def test_buckets_keep_short_texts_away_from_long_ones() -> None:
    lengths = [10, 120, 12, 100]
    assert plan(lengths, 2, 128, "fixed") == [Batch((0, 1), 128), Batch((2, 3), 128)]
    assert plan(lengths, 2, 128, "longest") == [Batch((0, 1), 120), Batch((2, 3), 100)]
    bucketed = plan(lengths, 2, 128, "bucketed")
    assert bucketed == [Batch((0, 2), 16), Batch((1, 3), 128)]
    assert padding_share(lengths, bucketed) == pytest.approx(1 - 242 / 288)


@pytest.mark.parametrize(("sequence", "widths"), [(8, (8,)), (16, (16,)), (100, (16, 32, 64, 100))])
def test_the_last_width_is_the_sequence(sequence: int, widths: tuple[int, ...]) -> None:
    assert bucket_widths(sequence) == widths


@pytest.mark.parametrize(
    ("lengths", "batch", "policy"), [([], 2, "fixed"), ([300], 2, "fixed"), ([0], 2, "fixed"), ([3], 0, "longest")]
)
def test_what_cannot_be_batched_is_refused(lengths: list[int], batch: int, policy: str) -> None:
    with pytest.raises(ConfigError, match="cannot batch"):
        plan(lengths, batch, 200, policy)
    with pytest.raises(ConfigError, match="longest"):
        plan([3], 1, 200, "longst")
